import assert from "node:assert/strict";
import { test } from "node:test";
import type { Occurrence, PoolDevice, Side } from "./model";
import { device, nvme, pool } from "./samples";
import { lastOf, pathsOf, troublesOf } from "./troubles";

const HOUR_NS = 3600e9;
const there: PoolDevice = { path: "/dev/sdb", kind: "block", size_bytes: 100, pool_bytes: 100, unused_bytes: 0, direct: true, polled: false };
const side: Side = { device: 0, side: 1, path: "/dev/sdc", state: "in_sync", left_bytes: 0, copied_bytes: 0, repaired_reads: 0 };

function told(kind: string, subject: string, text: string, time_ns = 0): Occurrence {
  return { number: 1, time_ns, level: "warning", kind, pool: "p", subject, text };
}

test("what is well is no trouble", () => {
  const mirrored = pool("p", { devices: [there], sides: [side, { ...side, side: 0 }] });
  const devices = [device("sdb"), device("nvme0n1", { nvme: nvme({}) }), device("nvme1n1", { nvme: { ...nvme({}), identified: null } })];
  assert.deepEqual(troublesOf(devices, [mirrored], [told("snapshot_taken", "/dev/sdb", "")], 0), []);
});

test("a controller that says nothing of its spare blocks has not too few of them", () => {
  const silent = device("nvme0n1", { nvme: nvme({ spare_percent: 0, spare_threshold_percent: 0 }) });
  assert.deepEqual(troublesOf([silent], [], [], 0), []);
});

test("devices that fail are shown with what was told of them last, before what is to be watched", () => {
  const lost = pool("p", {
    devices: [there, { ...there, path: "/dev/sdd", lost_since_ns: 1 }, { ...there, path: "/dev/sde", size_bytes: 50, lost_since_ns: 1 }],
    sides: [{ ...side, state: "resync", left_bytes: 4096 }, { ...side, device: 1, path: "/dev/sdf", state: "out", why: "a write failed" }, { ...side, path: "/dev/sdd", state: "out" }],
  });
  const hot = device("nvme0n1", { used_by: [{ kind: "pool", name: "p" }], nvme: nvme({ warnings: ["temperature is beyond its threshold"], temperature_celsius: 88 }) });
  const worn = device("nvme1n1", { nvme: nvme({ used_percent: 104, media_errors: 3 }) });
  const empty = device("nvme2n1", { nvme: nvme({ spare_percent: 5 }) });
  const events = [told("device_lost", "/dev/sdd", "gone"), told("device_lost", "/dev/sdd", "gone before")];
  const found = troublesOf([hot, worn, empty], [lost], events, 0);
  const said = found.map(({ path, pool, isBad, state }) => `${isBad ? "!" : ""}${path} ${pool ?? "-"} ${state}`);
  assert.deepEqual(said, [
    "!/dev/sdd p lost",
    "!/dev/sde p too small",
    "!/dev/sdf p out",
    "!/dev/nvme0n1 p health",
    "!/dev/nvme2n1 - health",
    "/dev/sdc p resync",
    "/dev/nvme1n1 - health",
    "/dev/nvme1n1 - health",
  ]);
  assert.equal(found[0]?.last?.text, "gone");
  assert.match(found[2]?.text ?? "", /side 1\.1: a write failed/);
  assert.match(found[3]?.text ?? "", /88 °C/);
  assert.match(found[4]?.text ?? "", /5\.0% of the spare/);
});

test("what is said of a device under the name that its pool has for it is said of its row", () => {
  const link = "/dev/disk/by-id/nvme-Drive_1";
  const row = device("nvme0n1", { pool_paths: [link], used_by: [{ kind: "pool", name: "p" }] });
  const other = device("nvme1n1");
  const lost = pool("p", { devices: [{ ...there, path: link, size_bytes: 50, lost_since_ns: 1 }] });
  const found = troublesOf([row, other], [lost], [], 0);
  const stateOf = (shown: typeof row) => found.filter(({ path }) => pathsOf(shown).includes(path)).map(({ state }) => state);
  assert.deepEqual([stateOf(row), stateOf(other)], [["too small"], []]);
  assert.deepEqual(pathsOf(device("nvme2n1", { nvme: { ...nvme({}), generic: "/dev/ng2n1" } })), ["/dev/nvme2n1", "/dev/ng2n1"]);
  assert.equal(lastOf([told("device_stalled", link, "has not answered")], ...pathsOf(row))?.kind, "device_stalled");
});

test("a device that does not answer is shown as long as that lasts", () => {
  const of = (more: { stalled_since_ns?: number }) => troublesOf([], [pool("p", { devices: [{ ...there, ...more }] })], [told("device_stalled", there.path, "")], 0);
  assert.deepEqual(of({ stalled_since_ns: 5 }).map(({ path, isBad, state }) => [path, isBad, state]), [[there.path, true, "silent"]]);
  assert.deepEqual(of({}), []);
});

test("a stall is remembered for an hour, unless something later was told", () => {
  const stalled = told("device_stall_ended", "/dev/sdb", "nothing waits for it any more, after 2.5 s", 5 * HOUR_NS);
  const of = (events: Occurrence[], now_ns: number) => troublesOf([device("sdb")], [], events, now_ns).map(({ state }) => state);
  assert.deepEqual(of([stalled], 5.5 * HOUR_NS), ["stalled"]);
  assert.deepEqual(of([stalled], 6.5 * HOUR_NS), []);
  assert.deepEqual(of([told("device_returned", "/dev/sdb", "back"), stalled], 5.5 * HOUR_NS), []);
  assert.equal(lastOf([told("device_stalled", "/dev/sdb1", "has not answered")], "/dev/sdb"), null);
});
