// What the page does without its server: keys, copying, saving a table, dark and light.

const KEY_STORE = "qwen3-vl-api-key";
const MODE_STORE = "qwen3-vl-dark";

function press(id) {
  const button = document.getElementById(id);
  if (button && button.offsetParent !== null) button.click();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) press("describe");
  if (event.key === "Escape") press("stop");
});

document.addEventListener("click", (event) => {
  const copy = event.target.closest?.("[data-copy]");
  if (copy) copyText(copy);
  if (event.target.closest?.("[data-save-table]")) saveTable();
  if (event.target.closest?.("[data-mode]")) setDark(!document.body.classList.contains("dark"));
});

async function copyText(button) {
  const copied = await write(button.dataset.copy);
  const label = button.textContent;
  button.textContent = copied ? "Copied" : "Not allowed here: select and copy";
  setTimeout(() => (button.textContent = label), 1500);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP browsers have no clipboard but this.
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

function saveTable() {
  const rows = [...document.querySelectorAll("#answer tr")].map((row) =>
    [...row.cells].map((cell) => `"${cell.innerText.trim().replaceAll('"', '""')}"`).join(","),
  );
  const link = document.createElement("a");
  // The mark makes spreadsheets read UTF-8.
  link.href = URL.createObjectURL(new Blob(["\ufeff" + rows.join("\r\n") + "\r\n"], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

function setDark(dark) {
  document.body.classList.toggle("dark", dark);
  localStorage.setItem(MODE_STORE, dark ? "dark" : "light");
}

// What Gradio's parts do not tell a screen reader or a keyboard by themselves.
function complete() {
  for (const group of document.querySelectorAll("fieldset.block")) {
    group.setAttribute("role", "radiogroup");
    group.setAttribute("aria-label", group.querySelector("[data-testid=block-info]").textContent);
    // One name makes them one stop for the Tab key, with arrows to choose by. Gradio gives each
    // its own, and again with every choice.
    const unite = () => {
      for (const radio of group.querySelectorAll("input[type=radio]")) {
        if (radio.name !== group.id) radio.name = group.id;
      }
    };
    new MutationObserver(unite).observe(group, { subtree: true, attributeFilter: ["name"] });
    unite();
  }
  for (const button of document.querySelectorAll(".gr-accordion > button")) {
    const tell = () => button.setAttribute("aria-expanded", button.classList.contains("open"));
    new MutationObserver(tell).observe(button, { attributeFilter: ["class"] });
    tell();
    button.querySelector(".icon")?.setAttribute("aria-hidden", "true");
  }
  for (const input of document.querySelectorAll("#sampling input")) input.inputMode = "decimal";
  document.getElementById("describe").title = "Ctrl + Enter";
}

// "Describe" and "Stop" take turns: whoever was on the one that goes is on the other that comes.
let focused = null;
document.addEventListener("focusin", (event) => (focused = event.target));
function keepFocus() {
  const isLost = document.activeElement === document.body;
  if (!isLost || !["describe", "stop"].includes(focused?.id)) return;
  const next = document.getElementById(focused.id === "stop" ? "describe" : "stop");
  if (next?.offsetParent) next.focus({ preventScroll: true });
}

// The key lives as long as the tab: the session's store, never the lasting one.
globalThis.qwen3vl = {
  key: () => sessionStorage.getItem(KEY_STORE) ?? "",
  keep: (key) => (key ? sessionStorage.setItem(KEY_STORE, key) : sessionStorage.removeItem(KEY_STORE)),
  started: () => {
    // On a phone the answer is below the form.
    const block = matchMedia("(max-width: 760px)").matches ? "start" : "nearest";
    document.getElementById("answer-card").scrollIntoView({ behavior: "smooth", block });
  },
  ready: () => {
    const kept = localStorage.getItem(MODE_STORE);
    if (kept) document.body.classList.toggle("dark", kept === "dark");
    complete();
    const turns = new MutationObserver(() => requestAnimationFrame(keepFocus));
    turns.observe(document.getElementById("buttons"), { subtree: true, childList: true, attributes: true });
  },
};
