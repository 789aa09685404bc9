import assert from "node:assert/strict";
import { test } from "node:test";
import { FAILURES_MAX, failures, onFailures, putAway, Waiting } from "./failures";
import type { Mistake } from "./model";

const mistake = (message: string): Mistake => ({ kind: "failure", message });

test("what went wrong is shown to who waits for it, and to everybody if they left", () => {
  let told = 0;
  const end = onFailures(() => told++);
  const shown: string[] = [];
  const show = ({ message }: Mistake) => void shown.push(message);
  const waiting = new Waiting();
  waiting.failed("Make p", mistake("first"), show);
  assert.deepEqual([shown, failures(), told], [["first"], [], 0]);
  waiting.leave();
  waiting.failed("Make p", mistake("second"), show);
  assert.deepEqual([shown, told], [["first"], 1]);
  assert.deepEqual(failures().map(({ title, mistake: { message } }) => [title, message]), [["Make p", "second"]]);
  putAway(failures()[0]?.number ?? 0);
  assert.deepEqual([failures(), told], [[], 2]);
  for (let number = 0; number <= FAILURES_MAX; number++) {
    waiting.failed("Make p", mistake(`${number}`), show);
  }
  assert.deepEqual([failures().length, failures()[0]?.mistake.message], [FAILURES_MAX, "1"]);
  end();
  putAway(failures()[0]?.number ?? 0);
  assert.equal(told, 2 + FAILURES_MAX + 1);
});
