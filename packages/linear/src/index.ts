export * from './based/index.js';
export * from './lawcat/index.js';
export * from './lightning/index.js';
export * from './lightning2/index.js';
export * from './lla/index.js';
export * from './titans/index.js';
export * from './transnormerllm/index.js';
