export { argsort, type SortOptions } from './order.js';
export { sortPairs } from './pairs.js';
export { sort, topK, type TopKOptions } from './topk.js';
