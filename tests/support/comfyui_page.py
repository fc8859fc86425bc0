"""ComfyUI's page in a headless browser: nodes searched, workflows opened, queued and looked at."""

import json
from pathlib import Path

from support.chromium import Browser, waited
from support.comfyui_server import Server


class Page:
    """The page of a server, with an empty graph. `app` is the page's own object of that name."""

    def __init__(self, server: Server, profile: Path, size: tuple[int, int] = (1600, 1000)):
        # Else the page greets a new user with its templates.
        server.post("settings", {"Comfy.TutorialCompleted": True})
        self.server, self.browser = server, Browser(profile, size)
        self.js, self.wait = self.browser.js, self.browser.wait
        self.browser.open(f"http://{server.address}/")
        self.wait("!!(window.app?.isGraphReady ?? window.app?.canvas) && !!app.graph", 120)
        self.wait("app.graph._nodes.length > 0")  # the workflow that a new user sees
        self.clear()

    def clear(self) -> None:
        self.js("app.graph.clear()")
        # Widgets that are elements of the page go with the next frame.
        self.wait("app.graph._nodes.length == 0 && !document.querySelector('.dom-widget')")

    @property
    def nodes(self) -> list[dict]:
        """The graph's nodes: id, type, widgets' names and values, place and size."""
        return self.js(
            "app.graph._nodes.map(n => ({id: n.id, type: n.type, at: [...n.pos], size: [...n.size],"
            " widgets: Object.fromEntries((n.widgets || []).map(w => [w.name, w.value ?? null]))}))"
        )

    def found(self, words: str) -> list[str]:
        """Search for a node as a double click on the canvas does; add the first, and return all.

        Types of nodes, with the one that was added first.
        """
        width, height = self.js("[innerWidth, innerHeight]")

        def asked() -> bool:
            self.browser.click(width / 2, height * 0.8, times=2)
            self.rest(1)
            return self.js("document.activeElement.tagName == 'INPUT'")

        waited(asked, 30, "the search dialog")
        self.browser.type(words)
        # The list is of what was typed a moment ago until the page has searched.
        self.rest(1.5)
        self.browser.key("Enter", 13)
        self.wait("app.graph._nodes.length == 1")
        return [node["type"] for node in self.nodes]

    def add(self, kind: str, **values) -> None:
        """Add a node in the middle of what is seen, and set widgets of it."""
        self.js(
            f"""(() => {{
              const node = LiteGraph.createNode({json.dumps(kind)});
              app.graph.add(node);
              for (const [name, value] of Object.entries({json.dumps(values)}))
                node.widgets.find(one => one.name == name).value = value;
            }})()"""
        )
        self.fit()

    def press(self, label: str) -> None:
        """Press the button of this text."""
        self.browser.click_on(
            f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() == '{label}')"
        )

    def refresh(self) -> None:
        """Ask the server again for the files that the nodes' lists have, as the key R does."""
        self.js("app.refreshComboInNodes().then(() => true)")

    def open_template(self, pack: str, name: str) -> None:
        """Open an example workflow from the template browser."""
        self.js("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        leaf = "[...document.querySelectorAll('[role=dialog] *')].find(e => !e.children.length"
        self.browser.click_on(f"{leaf} && e.textContent.trim() == {json.dumps(pack)})")
        card = f"document.querySelector('[data-testid={json.dumps('template-workflow-' + name)}]')"
        self.wait(f"!!{card}")
        self.rest(1)
        self.browser.click_on(card)
        self.wait("!document.querySelector('[data-testid=template-workflows-content]')")

    def rest(self, seconds: float) -> None:
        """Let the page draw for a while."""
        self.js(f"new Promise(done => setTimeout(() => done(true), {1000 * seconds}))")

    def saved(self) -> dict:
        """Return the graph as the page saves it."""
        return self.js("app.graph.serialize()")

    def fit(self) -> None:
        """Zoom so that the whole graph is seen."""
        self.browser.js("app.extensionManager.command.execute('Comfy.Canvas.FitView')")

    def close(self) -> None:
        self.browser.close()
