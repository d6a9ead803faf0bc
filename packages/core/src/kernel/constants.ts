import type { Device } from '../device/device.js';
import type { Operand } from './bindings.js';

const tables = new WeakMap<Device, Map<string, Operand>>();

/**
 * A table that kernels read and nobody writes (twiddle factors, slopes): made once a device and kept until it closes.
 * @param key says all that the values depend on
 */
export function constantTable(device: Device, key: string, make: () => Float32Array | Uint32Array): Operand {
  let cache = tables.get(device);
  if (!cache) tables.set(device, (cache = new Map()));
  const found = cache.get(key);
  if (found) return found;
  const values = make();
  const storage = device.allocate(Math.ceil(values.byteLength / 16) * 16, key);
  device.write(storage, 0, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  const table: Operand = {
    storage,
    dtype: values instanceof Float32Array ? 'f32' : 'u32',
    offset: 0,
    extent: values.length,
    label: key,
    shape: [values.length],
  };
  cache.set(key, table);
  return table;
}
