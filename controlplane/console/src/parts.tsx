// Small parts of which the pages are made.

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { percent, size } from "./format";
import { failures, onFailures, putAway } from "./failures";
import { useDoing } from "./hooks";
import type { Choice } from "./making";
import type { Mistake } from "./model";

export function Wrong({ mistake }: { mistake: Mistake | null }) {
  return mistake && (
    <p class="wrong" role="alert">
      <b>{mistake.message}</b>
      {mistake.hint && <span>{mistake.hint}</span>}
    </p>
  );
}

/** What went wrong when nobody looked any more. */
export function Failures() {
  const [shown, setShown] = useState(failures);
  useEffect(() => onFailures(() => setShown(failures())), []);
  return (
    <>
      {shown.map(({ number, title, mistake }) => (
        <div key={number} class="away" role="alert">
          <b>{title}: {mistake.message}</b> {mistake.hint} <button type="button" class="small" onClick={() => putAway(number)}>Put away</button>
        </div>
      ))}
    </>
  );
}

const GOOD = ["good", "open", "in_sync", "done", "there", "active"];
const BAD = ["failed", "device_lost", "device_shrunk", "stopped", "out", "lost", "silent", "damaged", "error"];

export function State({ name, text }: { name: string; text?: string }) {
  const kind = GOOD.includes(name) ? "good" : BAD.includes(name) ? "bad" : "middling";
  return <span class={`state ${kind}`}>{text ?? name.replaceAll("_", " ")}</span>;
}

/** A part of a whole; one that is nearly full is marked, unless it is somebody's share of something. */
export function Bar({ part, whole, text, share }: { part: number; whole: number; text?: string; share?: boolean }) {
  const filled = whole > 0 ? Math.min(1, part / whole) : 0;
  return (
    <span class="bar" title={text ?? `${size(part)} of ${size(whole)}`}>
      <span class={filled > 0.9 && !share ? "high" : ""} style={{ width: `${filled * 100}%` }} />
      <em>{percent(part, whole)}</em>
    </span>
  );
}

export function Pairs({ rows }: { rows: [string, ComponentChildren][] }) {
  return (
    <dl>
      {rows.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value ?? "-"}</dd>
        </div>
      ))}
    </dl>
  );
}

/** A table. A column whose name begins with `>` is set to the right. */
export function Table({ columns, children, empty }: { columns: string[]; children: ComponentChildren[]; empty: string }) {
  return (
    <div class="scroll">
      <table>
        <thead>
          <tr>{columns.map((name, index) => <th key={index} class={name.startsWith(">") ? "right" : ""}>{name.replace(">", "")}</th>)}</tr>
        </thead>
        <tbody>{children.length > 0 ? children : <tr><td colSpan={columns.length} class="empty">{empty}</td></tr>}</tbody>
      </table>
    </div>
  );
}

export function Copy({ text }: { text: string }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return (
    <span class="copy">
      <code>{text}</code>
      <button type="button" class="small" onClick={copy} aria-label={`copy ${text}`}>{copied ? "copied" : "copy"}</button>
    </span>
  );
}

/** A button that does something at once; what goes wrong is shown beside it. */
export function Act({ name, act, small, disabled }: { name: string; act: () => Promise<unknown>; small?: boolean; disabled?: boolean }) {
  const { busy, mistake, clear, doing } = useDoing(name);
  return (
    <>
      <button type="button" class={small ? "small" : ""} disabled={busy || disabled} onClick={() => doing(act)}>{name}</button>
      {mistake && (
        <Dialog title={name} close={clear}>
          <Wrong mistake={mistake} />
          <menu><button type="button" autofocus onClick={clear}>Close</button></menu>
        </Dialog>
      )}
    </>
  );
}

function Dialog({ title, close, children }: { title: string; close: () => void; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} onClose={close} onCancel={close}>
      <h2>{title}</h2>
      {children}
    </dialog>
  );
}

export interface Field {
  name: string;
  label: string;
  kind?: "text" | "check" | "choice" | "lines" | "devices" | "device";
  value?: string;
  choices?: string[];
  /** What "devices" and "device" are chosen of. */
  devices?: Choice[];
  hint?: string;
  optional?: boolean;
  /** What has to be typed, and nothing else. */
  must?: string;
}

export type Values = Record<string, string>;

/** What was typed, one a line. */
export function linesOf(text: string | undefined): string[] {
  return (text ?? "").split("\n").map((line) => line.trim()).filter(Boolean);
}

export interface Question {
  title: string;
  text?: ComponentChildren;
  /** What is asked for; it may depend on what was given. */
  fields?: Field[] | ((values: Values) => Field[]);
  /** What comes of what was given. */
  note?: (values: Values) => ComponentChildren;
  /** What has to be typed before it is done. */
  typed?: string | ((values: Values) => string);
  button: string;
  dangerous?: boolean;
  act: (values: Values) => Promise<unknown>;
}

/** A button that asks first: for what is needed, or whether it is meant. */
export function Ask({ question, name, small, disabled }: { question: Question; name: string; small?: boolean; disabled?: boolean }) {
  const [open, setOpen] = useState(false);
  return (
    <>
      <button type="button" class={`${small ? "small" : ""} ${question.dangerous ? "dangerous" : ""}`} disabled={disabled} onClick={() => setOpen(true)}>
        {name}
      </button>
      {open && <Form question={question} close={() => setOpen(false)} />}
    </>
  );
}

function Form({ question, close }: { question: Question; close: () => void }) {
  const asked = question.fields ?? [];
  const fieldsOf = (values: Values) => (typeof asked === "function" ? asked(values) : asked);
  const [values, setValues] = useState<Values>(() => Object.fromEntries(fieldsOf({}).map((field) => [field.name, field.value ?? ""])));
  const fields = fieldsOf(values);
  const must = typeof question.typed === "function" ? question.typed(values) : question.typed;
  const [typed, setTyped] = useState("");
  const { busy, mistake, doing } = useDoing(question.title);
  const set = (name: string, value: string) => setValues((before) => ({ ...before, [name]: value }));
  const submit = async (event: Event) => {
    event.preventDefault();
    if (await doing(() => question.act(values))) {
      close();
    }
  };
  const given = (field: Field) => values[field.name] ?? "";
  const ready = (must === undefined || (must !== "" && typed === must))
    && fields.every((field) => field.optional || field.kind === "check" || (field.must === undefined ? given(field) !== "" : given(field) === field.must));
  return (
    <Dialog title={question.title} close={close}>
      <form onSubmit={submit}>
        {question.text && <div class="text">{question.text}</div>}
        {fields.map((field, index) => (
          field.devices ? (
            <fieldset key={field.name}>
              <legend>{field.label}</legend>
              <Choices field={field} choices={field.devices} value={given(field)} set={(value) => set(field.name, value)} />
            </fieldset>
          ) : (
            <label key={field.name} class={field.kind === "check" ? "check" : ""}>
              <span>{field.label}</span>
              <Input field={field} value={given(field)} set={(value) => set(field.name, value)} first={index === 0} />
              {field.hint && <small>{field.hint}</small>}
            </label>
          )
        ))}
        {question.note?.(values)}
        {must !== undefined && (
          <label>
            <span>{must === "" ? "Then its name again" : <>Type <b>{must}</b> to go on</>}</span>
            <input value={typed} onInput={(event) => setTyped(event.currentTarget.value)} autofocus={fields.every((field) => field.kind === "check")} autocomplete="off" spellcheck={false} />
          </label>
        )}
        <Wrong mistake={mistake} />
        <menu>
          <button type="button" onClick={close} autofocus={must === undefined && fields.length === 0} title={busy ? "it goes on; what goes wrong is shown above the page" : undefined}>{busy ? "Close" : "Cancel"}</button>
          <button type="submit" class={question.dangerous ? "dangerous" : "main"} disabled={!ready || busy}>{busy ? "…" : question.button}</button>
        </menu>
      </form>
    </Dialog>
  );
}

/** Devices to choose one or several of; those that cannot be are greyed, with the reason. */
function Choices({ field, choices, value, set }: { field: Field; choices: Choice[]; value: string; set: (value: string) => void }) {
  const chosen = linesOf(value);
  const choose = (path: string, on: boolean) => {
    const others = field.kind === "device" ? [] : chosen.filter((other) => other !== path);
    set([...others, ...(on ? [path] : [])].join("\n"));
  };
  if (choices.length === 0) {
    return <p class="quiet">This machine has no block devices that anybody may see.</p>;
  }
  return (
    <ul class="choices">
      {choices.map(({ path, about, refused, holds }) => (
        <li key={path} class={refused === undefined ? "" : "refused"}>
          <label>
            <input type="checkbox" checked={chosen.includes(path)} disabled={refused !== undefined && !chosen.includes(path)} onChange={(event) => choose(path, event.currentTarget.checked)} />
            <b>{path}</b> <span class="quiet">{about}</span>
          </label>
          {(refused ?? holds) && <small>{refused ?? `holds ${holds}`}</small>}
        </li>
      ))}
    </ul>
  );
}

function Input({ field, value, set, first }: { field: Field; value: string; set: (value: string) => void; first: boolean }) {
  if (field.kind === "check") {
    return <input type="checkbox" checked={value === "yes"} onChange={(event) => set(event.currentTarget.checked ? "yes" : "")} />;
  }
  if (field.kind === "choice") {
    return (
      <select value={value} onChange={(event) => set(event.currentTarget.value)}>
        {field.choices?.map((choice) => <option key={choice} value={choice}>{choice}</option>)}
      </select>
    );
  }
  if (field.kind === "lines") {
    return <textarea rows={3} value={value} onInput={(event) => set(event.currentTarget.value)} autofocus={first} spellcheck={false} />;
  }
  return <input value={value} placeholder={field.must} onInput={(event) => set(event.currentTarget.value)} autofocus={first} autocomplete="off" spellcheck={false} />;
}
