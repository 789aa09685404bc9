import assert from "node:assert/strict";
import { test } from "node:test";
import { choiceOf, pairs, poolRequest, type Wish } from "./making";
import { device } from "./samples";

test("devices that somebody uses are refused, and those that hold something are named again", () => {
  const of = (more: Parameters<typeof device>[1]) => {
    const { refused, holds } = choiceOf(device("sdb", more));
    return refused ?? (holds ? `holds ${holds}` : "free");
  };
  assert.equal(of({}), "free");
  assert.equal(of({ used_by: [{ kind: "pool", name: "p" }, { kind: "holder", name: "md0" }] }), "in use: pool p, part of md0");
  assert.equal(of({ used_by: [{ kind: "mount", name: "/" }], partitions: ["sdb1"], content: "a GPT partition table" }), "in use: mounted on /");
  assert.equal(of({ read_only: true }), "cannot be written");
  assert.equal(of({ size_bytes: 0 }), "nothing is in it");
  assert.equal(of({ content_error: "denied" }), "cannot be read: denied");
  assert.equal(of({ content: "an XFS file system" }), "holds an XFS file system");
  assert.equal(of({ content: "a GPT partition table", partitions: ["sdb1"] }), "holds a GPT partition table, with partitions (sdb1)");
  assert.equal(of({ partitions: ["sdb1"] }), "holds partitions (sdb1)");
});

test("a pool is asked for as the API wants it", () => {
  const wish: Wish = { name: "p", devices: ["/dev/sdb", "/dev/sdc"], mirror: true, size: "", again: ["/dev/sdc"] };
  assert.deepEqual(poolRequest(wish), { name: "p", devices: ["/dev/sdb", "/dev/sdc"], mirror: true, force_devices: ["/dev/sdc"] });
  assert.equal(poolRequest({ ...wish, size: "1GiB" }).size_bytes, 2 ** 30);
  const wrong: [Partial<Wish>, RegExp][] = [
    [{ devices: [] }, /no device/],
    [{ devices: ["/a", "/b", "/a"] }, /\/a is chosen twice/],
    [{ devices: ["/a", "b"] }, /b is no whole path/],
    [{ devices: ["/a", "/b", "/c"] }, /\/c has no other side/],
    [{ size: "much" }, /much is no size/],
  ];
  for (const [change, message] of wrong) {
    assert.throws(() => poolRequest({ ...wish, ...change }), message);
  }
  assert.equal(poolRequest({ ...wish, devices: ["/a", "/b", "/c"], mirror: false }).mirror, false);
});

test("the first mirrors the second, the third the fourth", () => {
  assert.deepEqual(pairs(["a", "b", "c"]), [["a", "b"], ["c", undefined]]);
  assert.deepEqual(pairs([]), []);
});
