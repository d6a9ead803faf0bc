export { Carry, carrySlot, type CarrySlot } from './carry.js';
export { type Bytes, deviceBytes, type MixContext, type Snapshot, type State, type TokenMixer } from './mixer.js';
