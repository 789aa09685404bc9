// Snapshots below their volumes, clones below their snapshots.

import { useState } from "preact/hooks";
import { at, change } from "./api";
import { type Node, tree } from "./figures";
import { count, duration, size, stamp, time } from "./format";
import { useAsked } from "./hooks";
import type { Snapshot, Volume } from "./model";
import { Ask, linesOf, Pairs, type Question, Table, Wrong } from "./parts";
import { exporting, useVolumes } from "./volumes";

export function Snapshots() {
  const volumes = useVolumes();
  const snapshots = useAsked<Snapshot[]>("/v1/snapshots", 10_000);
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  const [open, setOpen] = useState<string | null>(null);
  const nodes = tree(volumes.data ?? [], snapshots.data ?? []);
  const there = (snapshots.data ?? []).filter((snapshot) => chosen.has(keyOf(snapshot)));
  const choose = (key: string, on: boolean) => {
    const next = new Set(chosen);
    if (on) {
      next.add(key);
    } else {
      next.delete(key);
    }
    setChosen(next);
  };
  return (
    <>
      <header>
        <h1>Snapshots</h1>
        <Ask name="Take a snapshot…" question={take(volumes.data ?? [])} disabled={!volumes.data?.length} />
        <Ask name={there.length > 0 ? `Delete ${there.length}…` : "Delete…"} question={remove(there)} disabled={there.length === 0} />
      </header>
      <Wrong mistake={volumes.mistake ?? snapshots.mistake} />
      <Table columns={["", "Volume, snapshot", "Time stamp", ">Hold", ">Answers held", ">Durable in", "By", "Locked until", ""]}
        empty={volumes.data ? "No volume yet." : "…"}>
        {nodes.flatMap((node) => {
          if (!node.snapshot) {
            return [<VolumeRow key={`${node.volume.pool}/${node.volume.name}`} node={node} />];
          }
          const key = keyOf(node.snapshot);
          const row = `${node.volume.pool}/${node.view}`;
          return [
            <SnapshotRow key={row} node={node} snapshot={node.snapshot} view={node.view} chosen={chosen.has(key)}
              choose={(on) => choose(key, on)} open={open === row} toggle={() => setOpen(open === row ? null : row)} />,
            ...(open === row ? [<tr key={`${row} details`}><td colSpan={9} class="details"><Details pool={node.volume.pool} view={node.view} /></td></tr>] : []),
          ];
        })}
      </Table>
    </>
  );
}

const keyOf = (snapshot: Snapshot) => `${snapshot.pool}/${snapshot.id}`;
const indent = (depth: number) => ({ paddingLeft: `${0.5 + depth * 1.3}rem` });

function VolumeRow({ node: { volume, depth } }: { node: Node }) {
  return (
    <tr class="volume">
      <td />
      <td style={indent(depth)}><b>{volume.name}</b> <span class="quiet">{volume.pool}, {size(volume.size_bytes)}{volume.origin && `, clone of ${volume.origin}`}</span></td>
      <td colSpan={6} />
      <td class="acts"><Ask name="Snapshot…" small question={take([volume])} /></td>
    </tr>
  );
}

interface RowProps {
  node: Node;
  snapshot: Snapshot;
  view: string;
  chosen: boolean;
  choose: (on: boolean) => void;
  open: boolean;
  toggle: () => void;
}

function SnapshotRow({ node, snapshot, view, chosen, choose, open, toggle }: RowProps) {
  const { pool, name: volume } = node.volume;
  const others = snapshot.volumes.length - 1;
  return (
    <tr>
      <td><input type="checkbox" checked={chosen} aria-label={`choose ${view}`} onChange={(event) => choose(event.currentTarget.checked)} /></td>
      <td style={indent(node.depth)}>
        <button type="button" class="opens" aria-expanded={open} onClick={toggle}>{view}</button>
        {others > 0 && <span class="quiet" title={snapshot.volumes.map(({ name }) => name).join(", ")}> with {others} more</span>}
      </td>
      <td>{time(snapshot.time_stamp_ns)}</td>
      <td class="right">{duration(snapshot.hold_ns_max)}</td>
      <td class="right">{count(snapshot.answers_held)}</td>
      <td class="right">{duration(snapshot.durable_ns)}</td>
      <td>{snapshot.schedule ?? "-"}</td>
      <td>{snapshot.locked_until_ns > 0 ? time(snapshot.locked_until_ns) : "-"}</td>
      <td class="acts">
        <Ask name="Clone…" small question={clone(volume, view, pool)} />
        <Ask name="Export…" small question={exporting(view, pool)} />
        <Ask name="Roll back…" small question={rollBack(volume, view, pool)} />
      </td>
    </tr>
  );
}

function Details({ pool, view }: { pool: string; view: string }) {
  const { data, mistake } = useAsked<Snapshot>(at`/v1/snapshots/${view}?pool=${pool}`, 10_000);
  if (!data) {
    return mistake ? <Wrong mistake={mistake} /> : <p class="quiet">…</p>;
  }
  const hold = new Map(data.holds.map((hold) => [hold.shard, hold]));
  return (
    <>
      <Pairs rows={[
        ["volumes", data.volumes.map((volume) => `${volume.name} (${size(volume.size_bytes)})`).join(", ")],
        ["number", data.id],
        ["longest hold of an answer", duration(data.answer_held_ns_max)],
        ["written to logs", data.log_bytes > 0 ? size(data.log_bytes) : "not known"],
        ["written to metadata", data.metadata_bytes > 0 ? size(data.metadata_bytes) : "not known"],
      ]} />
      <Table columns={["Volume", ">Shard", ">Processor", ">Hold", ">Answers held", ">Objects", ">Point-in-time copy", ">Change log", "First change", "Last change"]} empty="-">
        {(data.intermediate_snapshots ?? []).map((part) => (
          <tr key={`${part.volume} ${part.shard}`}>
            <td>{part.volume}</td>
            <td class="right">{part.shard}</td>
            <td class="right">{part.processor}</td>
            <td class="right">{duration(hold.get(part.shard)?.hold_ns ?? 0)}</td>
            <td class="right">{count(hold.get(part.shard)?.answers_held ?? 0)}</td>
            <td class="right">{count(part.objects)}</td>
            <td class="right">{size(part.point_in_time_copy.mapped_bytes)}</td>
            <td class="right">{size(part.change_log.bytes)}</td>
            <td>{part.change_log.first_change_ns > 0 ? time(part.change_log.first_change_ns) : "-"}</td>
            <td>{part.change_log.last_change_ns > 0 ? time(part.change_log.last_change_ns) : "-"}</td>
          </tr>
        ))}
      </Table>
    </>
  );
}

function take(volumes: Volume[]): Question {
  const several = volumes.length > 1;
  const one = volumes[0];
  // Of one pool: a snapshot cannot have more.
  const names = volumes.filter((volume) => volume.pool === one?.pool).map((volume) => volume.name);
  return {
    title: several || !one ? "Take a snapshot" : `Take a snapshot of ${one.name}`,
    fields: [
      { name: "name", label: "Name", value: stamp(Date.now()), hint: "what is behind the @" },
      ...(several ? [{ name: "volumes", label: "Volumes at one instant, one a line; of one pool", kind: "lines" as const, value: names.length > 8 ? "" : names.join("\n") }] : []),
    ],
    button: "Take",
    act: ({ name, volumes }) => {
      const given = several ? linesOf(volumes) : names;
      return change("POST", "/v1/snapshots", { volumes: given, name, ...(one && !several ? { pool: one.pool } : {}) });
    },
  };
}

function remove(snapshots: Snapshot[]): Question {
  const first = snapshots[0];
  return {
    title: snapshots.length === 1 && first ? `Delete ${first.name}` : `Delete ${snapshots.length} snapshots`,
    text: (
      <>
        <p>All of them go or, if one may not, none; each for all the volumes it was taken of.</p>
        <ul>{snapshots.slice(0, 12).map((snapshot) => <li key={snapshot.id}>{snapshot.name} <span class="quiet">{time(snapshot.time_stamp_ns)}</span></li>)}</ul>
        {snapshots.length > 12 && <p>and {snapshots.length - 12} more</p>}
      </>
    ),
    fields: [{ name: "defer", label: "Although some have clones: their space comes free later", kind: "check" }],
    button: "Delete",
    dangerous: true,
    act: async ({ defer }) => {
      if (snapshots.some((snapshot) => snapshot.pool !== first?.pool)) {
        throw new Error("these are of several pools: delete those of each on their own");
      }
      await change("POST", "/v1/snapshots/delete", { snapshots: snapshots.map((snapshot) => snapshot.name), pool: first?.pool, defer: defer === "yes" });
    },
  };
}

function clone(volume: string, view: string, pool: string): Question {
  const snapshot = view.slice(volume.length + 1);
  return {
    title: `Clone ${view}`,
    text: "A volume of its own that begins as the snapshot; at once, nothing is copied.",
    fields: [{ name: "name", label: "Its name" }],
    button: "Clone",
    act: ({ name }) => change("POST", at`/v1/volumes/${volume}/clone?pool=${pool}`, { snapshot, name }),
  };
}

function rollBack(volume: string, view: string, pool: string): Question {
  const snapshot = view.slice(volume.length + 1);
  return {
    title: `Roll ${volume} back to ${view}`,
    text: "The volume is what it was then, at once. What it is now is kept in another snapshot.",
    fields: [{ name: "force", label: "Disconnect its clients", kind: "check" }],
    typed: volume,
    button: "Roll back",
    dangerous: true,
    act: ({ force }) => change("POST", at`/v1/volumes/${volume}/rollback?pool=${pool}`, { snapshot, force: force === "yes" }),
  };
}
