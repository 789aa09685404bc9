import assert from "node:assert/strict";
import { test } from "node:test";
import { answersWith, difference, joined, knownWith, marksWith, NOTHING_KNOWN, OCCURRENCES_MAX, POINTS_MAX, stageRows, tree, whereToAsk } from "./figures";
import type { Occurrence, Point, Snapshot, Stage, Volume } from "./model";

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

test("answers are added without changing those before, and begin anew with another daemon", () => {
  const answer = (time_ms: number, pid: number, count: number) => ({ time_ms, pid, stages: [stage(0, "map", [[16, count]])] });
  const times = (answers: { time_ms: number }[]) => answers.map((one) => one.time_ms);
  const one = Object.freeze([answer(1, 0, 5)]) as ReturnType<typeof answer>[];
  const two = answersWith(one, answer(2, 7, 5));
  assert.deepEqual([times(one), times(two)], [[1], [1, 2]]);
  // Asked again for the same reason: the same.
  assert.deepEqual(answersWith(one, answer(2, 7, 5)), two);
  let many = two;
  for (let time_ms = 3; time_ms < 30; time_ms++) {
    many = answersWith(many, answer(time_ms, 7, time_ms + 5));
  }
  assert.deepEqual([times(many).length, times(many)[0], times(many).at(-1)], [11, 19, 29]);
  assert.deepEqual(times(answersWith(two, answer(3, 8, 9))), [3]);
  assert.deepEqual(times(answersWith(two, answer(3, 7, 4))), [3], "it counts less: it was started again");
  assert.deepEqual(times(answersWith(two, { time_ms: 3, pid: 7, stages: [] })), [3]);
});

const occurrence = (number: number): Occurrence => ({ number, time_ns: number, level: "info", kind: "", pool: "", subject: "", text: "" });
const occurrences = (from: number, to: number) => Array.from({ length: to - from }, (_, index) => occurrence(from + index));

test("events are asked for when there are some, and nobody waits for them", () => {
  const daemon = (last: number, started_ms = 1) => ({ last, started_ms });
  assert.equal(whereToAsk(NOTHING_KNOWN, null, true), null);
  const first = whereToAsk(NOTHING_KNOWN, daemon(5), true);
  assert.equal(first, "/v1/events?limit=200");
  assert.equal(whereToAsk(NOTHING_KNOWN, daemon(5), false), null, "the tab is hidden, or the daemon away");
  let known = knownWith(NOTHING_KNOWN, daemon(5), { events: occurrences(1, 6), last: 5 });
  assert.deepEqual([known.last, known.occurrences[0]?.number], [5, 5]);
  assert.equal(whereToAsk(known, daemon(5), true), null);
  assert.equal(whereToAsk(known, daemon(7), true), "/v1/events?after=5&limit=200");
  // Those of the background are not told, and not asked for again.
  known = knownWith(known, daemon(7), { events: [occurrence(6)], last: 7 });
  assert.deepEqual([whereToAsk(known, daemon(7), true), known.occurrences.map(({ number }) => number)], [null, [6, 5, 4, 3, 2, 1]]);
  // More than are told at once: the others next.
  known = knownWith(known, daemon(999), { events: occurrences(8, 208), last: 999 });
  assert.equal(whereToAsk(known, daemon(999), true), "/v1/events?after=207&limit=200");
  known = knownWith(knownWith(known, daemon(999), { events: occurrences(208, 408), last: 999 }), daemon(999), { events: occurrences(408, 608), last: 999 });
  assert.deepEqual([known.occurrences.length, known.occurrences[0]?.number], [OCCURRENCES_MAX, 607]);
  // Another daemon counts anew.
  assert.equal(whereToAsk(known, daemon(3, 2), true), "/v1/events?limit=200");
  known = knownWith(known, daemon(3, 2), { events: occurrences(1, 4), last: 3 });
  assert.deepEqual([known.last, known.occurrences.length], [3, 3]);
});

test("instants of snapshots stay for ten minutes, also of those that were deleted", () => {
  const at = (seconds: number) => ({ ...snapshot(`a@${seconds}`, seconds * 1e9, ["a"]), hold_ns_max: 7000 });
  const before = Object.freeze(marksWith([], [at(900), at(100), at(500)], 1000)) as ReturnType<typeof marksWith>;
  const times = (marks: { time_s: number }[]) => marks.map((mark) => mark.time_s);
  assert.deepEqual(times(before), [500, 900]);
  assert.match(before[0]?.about ?? "", /a@500: hold 7 µs/);
  assert.deepEqual(times(marksWith(before, [at(900), at(1200)], 1200)), [900, 1200]);
  assert.deepEqual(times(before), [500, 900]);
});
