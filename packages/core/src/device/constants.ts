// WebGPU's flag values, fixed by its specification; as numbers they need no globals (Node has none).
export const bufferUsage = {
  MAP_READ: 1,
  COPY_SRC: 4,
  COPY_DST: 8,
  UNIFORM: 0x40,
  STORAGE: 0x80,
  INDIRECT: 0x100,
  QUERY_RESOLVE: 0x200,
} as const;
export const mapModeRead = 1;
export const shaderStageCompute = 4;
