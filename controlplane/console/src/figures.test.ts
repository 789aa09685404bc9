import assert from "node:assert/strict";
import { test } from "node:test";
import { difference, joined, POINTS_MAX, stageRows, tree } from "./figures";
import type { Point, Snapshot, Stage, Volume } from "./model";

function stage(processor: number, name: string, counted: [number, number][]): Stage {
  const count = counted.reduce((sum, [, n]) => sum + n, 0);
  const sum_ns = counted.reduce((sum, [end, n]) => sum + end * n, 0);
  return { processor, kind: "read", stage: name, count, sum_ns, counted };
}

test("a difference is what came in between", () => {
  const before = [stage(0, "device", [[1000, 5], [2000, 1]]), stage(0, "map", [[16, 3]])];
  const after = [stage(0, "device", [[1000, 5], [2000, 4]]), stage(0, "map", [[16, 3]]), stage(1, "map", [[16, 1]])];
  assert.deepEqual(difference(before, after), [stage(0, "device", [[2000, 3]]), stage(1, "map", [[16, 1]])]);
});

test("processors are added up and stages keep their order", () => {
  const stages = [stage(0, "device", [[1000, 98], [5000, 1]]), stage(1, "device", [[1000, 1]]), stage(0, "ring", [[100, 4]])];
  const all = stageRows(stages, null);
  assert.deepEqual(all.map((row) => [row.stage, row.count]), [["ring", 4], ["device", 100]]);
  assert.deepEqual([all[1]?.p50_ns, all[1]?.p99_ns, all[1]?.p999_ns, all[1]?.max_ns], [1000, 1000, 5000, 5000]);
  assert.deepEqual(stageRows(stages, 1).map((row) => [row.stage, row.count]), [["device", 1]]);
});

function volume(name: string, origin: string | null = null, pool = "p"): Volume {
  const rest = { id: 0, size_bytes: 0, block_bytes: 4096, object_bytes: 0, mapped_bytes: 0, created_ns: 0 };
  return { name, pool, origin, change_log: null, snapshots: [], exports: [], ...rest };
}

function snapshot(name: string, time_stamp_ns: number, volumes: string[], pool = "p"): Snapshot {
  const costs = { durable_ns: 0, hold_ns_max: 0, answers_held: 0, answer_held_ns_max: 0, log_bytes: 0, metadata_bytes: 0, holds: [] };
  return { name, pool, id: time_stamp_ns, time_stamp_ns, locked_until_ns: 0, volumes: volumes.map((of) => ({ name: of, size_bytes: 0 })), ...costs };
}

test("snapshots are below their volumes and clones below their snapshots", () => {
  const volumes = [volume("b"), volume("trial", "a@late"), volume("a"), volume("lost", "?@gone"), volume("a", null, "q")];
  const snapshots = [snapshot("a@late", 2, ["a"]), snapshot("a@both", 1, ["a", "b"]), snapshot("trial@x", 3, ["trial"])];
  const shown = tree(volumes, snapshots).map((node) => `${" ".repeat(node.depth)}${node.snapshot ? node.view : `${node.volume.pool}/${node.volume.name}`}`);
  assert.deepEqual(shown, ["p/a", " a@both", " a@late", "  p/trial", "   trial@x", "p/b", " b@both", "p/lost", "q/a"]);
});

test("points follow each other, for ten minutes, until a clock is set back", () => {
  const points = (from: number, to: number): Point[] => Array.from({ length: to - from }, (_, index) => ({ time_ms: (from + index) * 1000, figures: null }));
  const times = (points: Point[]) => [points.length, (points[0]?.time_ms ?? 0) / 1000, (points.at(-1)?.time_ms ?? 0) / 1000];
  assert.deepEqual(times(joined([], points(1, 5))), [4, 1, 4]);
  assert.deepEqual(times(joined(points(1, 5), points(5, 7))), [6, 1, 6]);
  assert.deepEqual(times(joined(points(1, 5), [])), [4, 1, 4]);
  assert.deepEqual(times(joined(points(1, POINTS_MAX + 1), points(POINTS_MAX + 1, POINTS_MAX + 3))), [POINTS_MAX, 3, POINTS_MAX + 2]);
  assert.deepEqual(times(joined(points(100, 200), points(50, 52))), [2, 50, 51]);
});
