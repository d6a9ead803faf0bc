export * from './zeta/index.js';
