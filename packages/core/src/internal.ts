/**
 * For packages of the same house: what kernels are written with. Not covered by semantic versioning.
 */
export * from './kernel/bindings.js';
export * from './kernel/define.js';
export * from './kernel/modules.js';
export {
  capture,
  Expr,
  expr,
  exprFunction,
  type ExprFunction,
  type ExprType,
  rawFunction,
  toWgsl,
  typedExpr,
  uniform,
  variable,
} from './kernel/expr/index.js';
export { checkWorkgroupVariables, workgroupBytes } from './kernel/source.js';
export type { UniformType } from './kernel/uniforms.js';
export { asContiguous, copyContiguous, mergeAxes, stridedOffset } from './tensor/copy.js';
export { checkShape, empty } from './tensor/create.js';
export { contiguousStrides, sizeOf } from './tensor/tensor.js';
export { holdsTensors, isTensor, tensorsIn } from './tensor/scope.js';
export { type HeadPart, joinHeads, splitHeads } from './ops/permute-heads.js';
export { attentionInOrder } from './attention/attention.js';
export { apply, currentTape, type Backward, type OpCall, withoutTape } from './autodiff/tape.js';
export { accumulate } from './autodiff/accumulate.js';
export { vjp } from './autodiff/grad.js';
export { Fragments, fragmentGrid, fragmentLanes, fragmentShape, hasFragments, type FragmentLayout } from './kernel/fragments.js';
export { constantTable } from './kernel/constants.js';
export {
  extraRowFloats as kvExtraRowFloats,
  layoutOf as kvLayout,
  layoutUniforms as kvLayoutUniforms,
  loaderText as kvLoader,
  placeFunctions as kvPlaces,
} from './cache/index.js';
