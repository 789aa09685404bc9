// Schedules: what is due when, and what is kept.

import { useState } from "preact/hooks";
import { at, change } from "./api";
import { count, keep, parseKeep, parsePeriod, period, time } from "./format";
import { useAsked } from "./hooks";
import type { Schedule, Volume } from "./model";
import { Act, Ask, linesOf, Pairs, type Question, State, Table, Wrong } from "./parts";
import { useVolumes } from "./volumes";

export function Schedules() {
  const { data, mistake } = useAsked<Schedule[]>("/v1/schedules", 5000);
  const volumes = useVolumes();
  const [open, setOpen] = useState<string | null>(null);
  return (
    <>
      <header>
        <h1>Schedules</h1>
        <Ask name="Make a schedule…" question={create(volumes.data ?? [])} disabled={!volumes.data?.length} />
      </header>
      <Wrong mistake={mistake ?? volumes.mistake} />
      <Table columns={["Schedule", "Pool", "State", "Volumes", "Due", "Keeps", "Next run", ">Snapshots", ">Runs", ">Missed", ">Failed", ""]}
        empty={data ? "No schedule yet: nothing is taken by itself." : "…"}>
        {(data ?? []).flatMap((schedule) => {
          const key = `${schedule.pool}/${schedule.name}`;
          return [
            <Row key={key} schedule={schedule} open={open === key} toggle={() => setOpen(open === key ? null : key)} />,
            ...(open === key ? [<tr key={`${key} details`}><td colSpan={12} class="details"><Details schedule={schedule} /></td></tr>] : []),
          ];
        })}
      </Table>
    </>
  );
}

const pathOf = (schedule: Schedule, action: string) => at`/v1/schedules/${schedule.name}` + action + at`?pool=${schedule.pool}`;

function due({ every_ns, cron, time_zone }: Schedule): string {
  return every_ns === undefined ? `${cron} (${time_zone})` : `every ${period(every_ns)}`;
}

function Row({ schedule, open, toggle }: { schedule: Schedule; open: boolean; toggle: () => void }) {
  const isActive = schedule.state === "active";
  const next = schedule.next_runs_ns[0];
  const remove: Question = {
    title: `Delete schedule ${schedule.name}`,
    text: `Its ${count(schedule.snapshots)} snapshots stay until somebody deletes them: no other schedule touches them.`,
    button: "Delete",
    dangerous: true,
    act: () => change("DELETE", pathOf(schedule, "")),
  };
  const run: Question = {
    title: `Run schedule ${schedule.name} now`,
    text: "Takes a snapshot, and deletes those of its snapshots that its rules do not keep any more, also if it is paused.",
    button: "Run",
    dangerous: true,
    act: () => change("POST", pathOf(schedule, "/run")),
  };
  return (
    <tr>
      <td><button type="button" class="opens" aria-expanded={open} onClick={toggle}>{schedule.name}</button></td>
      <td>{schedule.pool}</td>
      <td><State name={schedule.last_error === undefined ? schedule.state : "error"} text={schedule.last_error === undefined ? schedule.state : `${schedule.state}, last run failed`} /></td>
      <td class="wrap">{schedule.volumes.join(", ")}</td>
      <td>{due(schedule)}</td>
      <td class="wrap">{keep(schedule.keep)}</td>
      <td>{isActive && next !== undefined ? time(next) : "-"}</td>
      <td class="right">{count(schedule.snapshots)}</td>
      <td class="right">{count(schedule.runs)}</td>
      <td class="right">{count(schedule.missed)}</td>
      <td class="right">{count(schedule.failed)}</td>
      <td class="acts">
        <Ask name="Run now…" small question={run} />
        {isActive
          ? <Act name="Pause" small act={() => change("POST", pathOf(schedule, "/pause"))} />
          : <Act name="Resume" small act={() => change("POST", pathOf(schedule, "/resume"))} />}
        <Ask name="Delete…" small question={remove} />
      </td>
    </tr>
  );
}

function Details({ schedule }: { schedule: Schedule }) {
  const { data, mistake } = useAsked<Schedule>(pathOf(schedule, ""), 10_000);
  if (!data) {
    return mistake ? <Wrong mistake={mistake} /> : <p class="quiet">…</p>;
  }
  return (
    <>
      {data.last_error !== undefined && <p class="wrong"><b>The last run failed: {data.last_error}</b></p>}
      <Pairs rows={[
        ["next runs", data.next_runs_ns.slice(0, 3).map(time).join(", ") || "-"],
        ["last run", data.last_run_ns > 0 ? time(data.last_run_ns) : "not since the pool was opened"],
        ["pruned", `${count(data.pruned)} since the pool was opened`],
        ["time zone", data.time_zone],
        ["made", time(data.created_ns)],
      ]} />
      <Table columns={["Snapshot", "Time stamp", "Kept by"]} empty="It has no snapshot.">
        {(data.kept ?? []).toReversed().slice(0, 100).map((kept) => (
          <tr key={kept.name}>
            <td>{kept.name}</td>
            <td>{time(kept.time_stamp_ns)}</td>
            <td class="wrap">{kept.pruned_next ? <span class="middling">pruned by the next run</span> : kept.kept_by.join(", ")}</td>
          </tr>
        ))}
      </Table>
      {(data.kept?.length ?? 0) > 100 && <p class="quiet">and {count((data.kept?.length ?? 0) - 100)} older ones</p>}
    </>
  );
}

const someOf = (names: string[]) => names.slice(0, 8).join(", ") + (names.length > 8 ? ", …" : "");

function create(volumes: Volume[]): Question {
  const pools = [...new Set(volumes.map(({ pool }) => pool))];
  const first = volumes[0]?.pool;
  const namesIn = (asked: string | undefined) => volumes.filter(({ pool }) => pool === (asked || first)).map(({ name }) => name);
  const only = volumes.length === 1 ? volumes[0]?.name ?? "" : "";
  return {
    title: "Make a schedule",
    fields: (values) => [
      { name: "name", label: "Name", hint: "its snapshots are called by it and the time" },
      ...(pools.length > 1 ? [{ name: "pool", label: "Pool", kind: "choice" as const, choices: pools, value: first ?? "" }] : []),
      { name: "volumes", label: "Volumes at one instant, one a line", kind: "lines", value: only, hint: `group:NAME for those of a group; there are ${someOf(namesIn(values.pool))}` },
      { name: "when", label: "Due", kind: "choice", choices: ["every", "cron"], value: "every" },
      ...(values.when === "cron" ? [
        { name: "cron", label: "Cron line", hint: "minute, hour, day of the month, month, day of the week: 30 2 * * *" },
      ] : [
        { name: "every", label: "Period", value: "1h", hint: "1s to 30d, in phase with the clock: 15m is due at :00, :15, :30, :45" },
      ]),
      { name: "time_zone", label: "Time zone of the cron line and of the days that are kept", value: Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC" },
      { name: "keep", label: "Kept", value: "last=8,hourly=24,daily=7", hint: "last=, hourly=, daily=, weekly=, monthly=, yearly=, or some of these" },
    ],
    button: "Make",
    act: async ({ name, pool, volumes, when, cron, every, time_zone, keep }) => {
      const every_ns = when === "cron" ? null : parsePeriod(every ?? "");
      if (when !== "cron" && every_ns === null) {
        throw new Error(`${every} is no period: 30s, 15m, 12h, 30d`);
      }
      const due = when === "cron" ? { cron } : { every_ns };
      await change("POST", "/v1/schedules", { name, pool: pool || first, volumes: linesOf(volumes), ...due, time_zone, keep: parseKeep(keep ?? "") });
    },
  };
}
