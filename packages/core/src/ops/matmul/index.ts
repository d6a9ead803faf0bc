export { type Activation, activations } from './activation.js';
export { matmul, type MatmulOptions } from './matmul.js';
export {
  type FragmentTile,
  type Load,
  type MatmulPlan,
  type MatmulShape,
  type OperandForm,
  planMatmul,
  type RegisterTile,
} from './plan.js';
