export * from './lightning2/index.js';
