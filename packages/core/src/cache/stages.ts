import { HeedError } from '../errors.js';
import type {
  KvCodesStage,
  KvElementsStage,
  KvHeadGroup,
  KvPlacementStage,
  KvRowsStage,
  KvStage,
  KvTokensStage,
} from '../seams/kv-stage.js';
import type { KvCodec } from '../seams/kv-codec.js';

/** What the stages say of one head group. */
export interface GroupStages {
  group: KvHeadGroup;
  tokens: KvTokensStage | undefined;
  rows: KvRowsStage | undefined;
  elements: KvElementsStage | undefined;
  codes: KvCodesStage | undefined;
  placement: KvPlacementStage | undefined;
  keys: KvCodec;
  values: KvCodec;
}

/**
 * Assigns stages to head groups, in the fixed order of kinds.
 * @throws HeedError INVALID_ARGUMENT for two stages of a kind on one group, an unknown group, heads in no group or in two
 */
export function assignStages(stages: readonly KvStage[], kvHeads: number, dense: KvCodec): GroupStages[] {
  const active = stages.filter((stage) => !stage.neutral);
  const headStages = active.filter((stage) => stage.kind === 'heads');
  if (headStages.length > 1)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `createKvCache: ${headStages.map((s) => s.name).join(' and ')} both route heads; give one heads stage (a head has one class)`,
    );
  const groups = headStages[0]?.groups(kvHeads).filter(({ heads }) => heads.length > 0) ?? [
    { name: 'all', heads: Array.from({ length: kvHeads }, (_, head) => head) },
  ];
  checkGroups(groups, kvHeads);
  const unknown = active.find((stage) => stage.group !== undefined && !namesOf(stages, groups, kvHeads).has(stage.group));
  if (unknown)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `createKvCache: stage ${unknown.name} acts on head group "${unknown.group}"; the groups are ${groups.map((g) => `"${g.name}"`).join(', ')}`,
    );
  return groups.map((group) => {
    const of = <K extends KvStage['kind']>(kind: K): Extract<KvStage, { kind: K }> | undefined => {
      const found = active.filter(
        (stage): stage is Extract<KvStage, { kind: K }> => stage.kind === kind && (stage.group ?? group.name) === group.name,
      );
      if (found.length > 1)
        throw new HeedError(
          'INVALID_ARGUMENT',
          `createKvCache: ${found.map((s) => s.name).join(' and ')} are both ${kind} stages of head group "${group.name}"; give one of a kind`,
        );
      return found[0];
    };
    const tokens = of('tokens');
    const rows = of('rows');
    const codes = of('codes');
    if (tokens && !(Number.isInteger(tokens.sinks) && tokens.sinks >= 0 && Number.isInteger(tokens.recent) && tokens.recent >= 1))
      throw new HeedError(
        'INVALID_ARGUMENT',
        `createKvCache: stage ${tokens.name} keeps ${tokens.sinks} sinks and ${tokens.recent} recent rows; sinks must be 0 or more, recent 1 or more`,
      );
    if (rows && !tokens)
      throw new HeedError(
        'INVALID_ARGUMENT',
        `createKvCache: stage ${rows.name} merges rows that leave, and no tokens stage of head group "${group.name}" lets any leave; add one`,
      );
    return {
      group,
      tokens,
      rows,
      elements: of('elements'),
      codes,
      placement: of('placement'),
      keys: codes?.keys ?? dense,
      values: codes?.values ?? dense,
    };
  });
}

/** Names that stages may act on: also those of groups that happen to be empty. */
function namesOf(stages: readonly KvStage[], groups: readonly KvHeadGroup[], kvHeads: number): Set<string> {
  const names = new Set(groups.map(({ name }) => name));
  for (const stage of stages) if (stage.kind === 'heads') for (const { name } of stage.groups(kvHeads)) names.add(name);
  return names;
}

function checkGroups(groups: readonly KvHeadGroup[], kvHeads: number): void {
  const heads = groups.flatMap((group) => [...group.heads]).sort((a, b) => a - b);
  if (heads.length !== kvHeads || heads.some((head, i) => head !== i))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `createKvCache: the head groups hold heads [${heads.join(', ')}]; each of the ${kvHeads} KV heads must be in one group`,
    );
}
