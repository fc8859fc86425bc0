// Show on a node what it did: the text of its summary, and the page of its report in a dialog.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

// Nodes whose results are shown: those of this pack that give a text.
const PREFIX = "NVFP4";
// Nodes after which there is a new file for the lists of loaders.
const WRITES_MODELS = ["NVFP4Convert", "NVFP4ConvertModel", "NVFP4Calibrate"];

// ComfyUI's own line of what a node is busy with, and its height.
const PROGRESS = "$$node-text-preview";
const PROGRESS_HEIGHT = 58;
// Heights in the graph's units: of a summary, which scrolls, and what a box for text is to have
// beside its least.
const SUMMARY_HEIGHT = 150;
const TEXT_MORE = 90;

function widgetOf(node, name) {
  return node.widgets?.find((one) => one.name === name);
}

function textBoxes(node) {
  return (node.widgets ?? []).filter((one) => one.element?.tagName === "TEXTAREA");
}

// Nodes of this pack, in subgraphs, too.
function ourNodes(graph = app.rootGraph ?? app.graph) {
  const nodes = graph?._nodes ?? [];
  const inner = nodes.filter((node) => node.subgraph).flatMap((node) => ourNodes(node.subgraph));
  return [...nodes.filter((node) => node.comfyClass?.startsWith(PREFIX)), ...inner];
}

// The node of an id as the server has it: "3", or "7:3" for one in the subgraph of node 7.
function nodeAt(id) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

// Make a node high enough for all that it shows; what people write into keeps its room.
function makeRoom(node) {
  const progress = widgetOf(node, PROGRESS);
  if (progress) progress.options.getMaxHeight = () => PROGRESS_HEIGHT;
  const [width, height] = node.computeSize();
  const wanted = height + TEXT_MORE * textBoxes(node).length;
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], wanted)]);
  node.setDirtyCanvas?.(true, true);
}

function summaryOf(node) {
  let widget = widgetOf(node, "nvfp4_summary");
  if (widget) return widget;
  const box = document.createElement("pre");
  box.className = "nvfp4-summary";
  box.tabIndex = 0;
  box.setAttribute("aria-label", "What the node did");
  Object.assign(box.style, {
    margin: "0", padding: "6px", overflow: "auto", whiteSpace: "pre-wrap", overflowWrap: "anywhere", userSelect: "text",
    font: "11px/1.35 ui-monospace, monospace", borderRadius: "4px",
    background: "var(--comfy-input-bg)", color: "var(--input-text)",
  });
  widget = node.addDOMWidget("nvfp4_summary", "nvfp4_summary", box, {
    serialize: false,
    getMinHeight: () => SUMMARY_HEIGHT,
    getMaxHeight: () => (textBoxes(node).length ? SUMMARY_HEIGHT : undefined),
  });
  widget.serialize = false;
  return widget;
}

// state: "done", "failed", "cancelled", or "earlier" for what is not of the run that goes on.
function showText(node, text, state = "done") {
  const { element } = summaryOf(node);
  element.textContent = text;
  element.dataset.state = state;
  element.style.opacity = state === "earlier" ? "0.5" : "1";
  element.style.outline = state === "failed" ? "1px solid var(--error-text, #f44)" : "none";
  makeRoom(node);
}

function markEarlier(node) {
  const element = widgetOf(node, "nvfp4_summary")?.element;
  if (element?.dataset.state === "done") showText(node, `An earlier run:\n${element.textContent}`, "earlier");
  const page = widgetOf(node, "nvfp4_page");
  if (page) page.label = "Show report of the earlier run";
}

// What ended a run, on the node where it did.
function showEnd({ node_id: id, node_type: type }, state, text = state) {
  const node = nodeAt(id);
  if (!type?.startsWith(PREFIX) || node?.comfyClass !== type) return;
  const progress = widgetOf(node, PROGRESS);
  if (progress) progress.value = state;
  showText(node, text, state);
}

function showPage(name) {
  const dialog = document.createElement("dialog");
  dialog.className = "nvfp4-report";
  dialog.setAttribute("aria-label", "Report");
  Object.assign(dialog.style, {
    width: "min(1100px, 92vw)", height: "90vh", padding: "0", border: "0", borderRadius: "8px",
    overflow: "hidden",
  });
  const frame = document.createElement("iframe");
  // No script, no origin: names in a report come from files of other people.
  frame.setAttribute("sandbox", "");
  frame.src = api.apiURL(`/nvfp4/page/${encodeURIComponent(name)}`);
  frame.title = "Report";
  Object.assign(frame.style, { width: "100%", height: "100%", border: "0" });
  const close = document.createElement("button");
  close.textContent = "✕";
  close.setAttribute("aria-label", "Close");
  Object.assign(close.style, {
    position: "absolute", top: "8px", right: "20px", width: "32px", height: "32px",
    borderRadius: "16px", border: "1px solid #8888", cursor: "pointer", font: "16px sans-serif",
    background: "#fff", color: "#000",
  });
  close.onclick = () => dialog.close();
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  dialog.append(frame, close);
  document.body.append(dialog);
  dialog.showModal();
}

function offerPage(node, name) {
  let widget = node.widgets?.find((one) => one.name === "nvfp4_page");
  if (!widget) {
    widget = node.addWidget("button", "nvfp4_page", null, () => showPage(widget.page), {
      serialize: false,
    });
    widget.serialize = false;
  }
  widget.label = "Show report";
  widget.page = name;
}

// Arrows move a size by tenths of a GB, and what is typed counts to the MB. A size that is too small
// for that becomes the smallest, and is refused: 0 would be no limit, the opposite of it.
function mendSize(node) {
  const widget = widgetOf(node, "target_size_gb");
  if (!widget) return;
  widget.options.step2 = 0.1;
  const before = widget.callback;
  widget.callback = function (value) {
    const result = before?.apply(this, arguments);
    if (value > 0 && widget.value === 0) widget.value = widget.options.round;
    return result;
  };
}

app.registerExtension({
  name: "nvfp4.results",
  setup() {
    api.addEventListener("execution_start", () => ourNodes().forEach(markEarlier));
    api.addEventListener("execution_error", ({ detail }) =>
      showEnd(detail, "failed", `failed: ${detail.exception_message.trim()}`));
    api.addEventListener("execution_interrupted", ({ detail }) => showEnd(detail, "cancelled"));
    // The page has put its line on the node by now.
    api.addEventListener("progress_text", () =>
      ourNodes().filter((node) => widgetOf(node, PROGRESS) && !widgetOf(node, PROGRESS).options.getMaxHeight).forEach(makeRoom));
  },
  nodeCreated(node) {
    if (node.comfyClass?.startsWith(PREFIX)) mendSize(node);
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith(PREFIX)) return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.nvfp4_page) offerPage(this, [output.nvfp4_page].flat()[0]);
      if (output?.text) {
        this.setSize([Math.max(this.size[0], 480), this.size[1]]);
        showText(this, [output.text].flat().join("\n"));
      }
      // The new file stands in the lists of loaders without a reload of the page.
      if (WRITES_MODELS.includes(nodeData.name)) app.reloadNodeDefs?.();
    };
  },
});
