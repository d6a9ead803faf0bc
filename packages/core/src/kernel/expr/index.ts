// The typed expression builder: from one expression come WGSL, the float64 function, derivatives and the cache key.
export { Expr, constant as constantOf } from './node.js';
export type { AnyExpr, CaptureDeclaration, ExprType, IntegerType, NumericType, Operand, RawDefinition, WgslCapture } from './node.js';
export * from './functions.js';
export { expr, exprFunction, typedExpr } from './expr.js';
export type { ExprFunction } from './expr.js';
export { freeNames, key } from './graph.js';
export type { FreeNames, Named } from './graph.js';
export { compile, evaluate } from './evaluate.js';
export type { Environment, HostValue } from './evaluate.js';
export { literal, toWgsl } from './wgsl.js';
export type { WgslNames, WgslText } from './wgsl.js';
export { captureDerivative, derivative, gradients } from './derivative.js';
export type { CaptureTerm } from './derivative.js';
export { substitute } from './substitute.js';
export type { Substitution } from './substitute.js';
export { hash128 } from './hash.js';
export { bounds, classify } from './interval.js';
export type { Bounds, IntervalEnvironment } from './interval.js';
