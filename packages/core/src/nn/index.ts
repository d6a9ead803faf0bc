export { attentionMixer, type AttentionMixerConfig, type AttentionMixerParams, type Projected, projectQkv } from './attention-mixer.js';
export { Block, type BlockConfig, type BlockParams } from './block.js';
export { initLinear, linear, type LinearOptions, type LinearParams, truncatedNormal } from './linear.js';
export { gatedMlp, type GatedMlpParams, initGatedMlp, swiglu } from './mlp.js';
