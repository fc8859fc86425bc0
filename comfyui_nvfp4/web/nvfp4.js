// Show on a node what it did: the text of its summary, and the page of its report in a dialog.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

// Nodes whose results are shown: those of this pack that give a text.
const PREFIX = "NVFP4";
// Nodes after which there is a new file for the lists of loaders.
const WRITES_MODELS = ["NVFP4Convert", "NVFP4ConvertModel", "NVFP4Calibrate"];

function showText(node, text) {
  let widget = node.widgets?.find((one) => one.name === "nvfp4_summary");
  if (!widget) {
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
      getMinHeight: () => 240,
    });
    widget.serialize = false;
  }
  widget.element.textContent = text;
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
    widget.label = "Show report";
    widget.serialize = false;
  }
  widget.page = name;
}

app.registerExtension({
  name: "nvfp4.results",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith(PREFIX)) return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.text) showText(this, [output.text].flat().join("\n"));
      if (output?.nvfp4_page) offerPage(this, [output.nvfp4_page].flat()[0]);
      const wanted = this.computeSize();
      this.setSize([Math.max(this.size[0], 480), Math.max(this.size[1], wanted[1])]);
      // The new file stands in the lists of loaders without a reload of the page.
      if (WRITES_MODELS.includes(nodeData.name)) app.reloadNodeDefs?.();
    };
  },
});
