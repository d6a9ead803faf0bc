export * from './lightning2/index.js';
export * from './titans/index.js';
