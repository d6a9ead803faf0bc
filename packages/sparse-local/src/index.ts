export * from './fna/index.js';
