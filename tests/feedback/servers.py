"""Servers that label, in a thread of the test: a chat endpoint, and Label Studio as seen."""

import contextlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.carry_out()

    def do_POST(self):
        self.carry_out()

    def carry_out(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        status, content, *headers = self.server.app(
            self.command, parts.path, query, body, self.headers
        )
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in dict(*headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(app):
    """Serve ``app``: a function of method, path, query, body and headers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.app = app
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Chat:
    """A chat endpoint. ``say`` makes the answer of the messages; ``trouble`` comes first."""

    def __init__(self, say):
        self.say = say
        self.trouble = []
        self.asked = []
        self.keys = set()
        self.lock = threading.Lock()

    def __call__(self, method, path, query, body, headers):
        assert (method, path) == ("POST", "/v1/chat/completions")
        with self.lock:
            if self.trouble:
                return self.trouble.pop(0)
            self.asked.append(body)
            self.keys.add(headers.get("Authorization"))
        content = self.say(body["messages"])
        message = {"role": "assistant", "content": content}
        return 200, {"choices": [{"message": message}], "usage": {"total_tokens": 10}}


def shown(messages):
    """The two responses of a question, in the order they are shown."""
    found = re.fullmatch(
        r"<conversation (.+?)>\n.*\n</conversation \1>\n\n<response A \1>\n(.*)\n</response A \1>"
        r"\n\n<response B \1>\n(.*)\n</response B \1>",
        messages[1]["content"],
        re.DOTALL,
    )
    return found[2], found[3]


def prefers_longer(messages):
    first, second = map(len, shown(messages))
    verdict = "A" if first > second else "B" if second > first else "TIE"
    return f"The longer one says more.\n[[{verdict}]]"


class LabelStudio:
    """What the community edition 1.23.2 answers to the requests that we send."""

    def __init__(self):
        self.projects = {}
        self.tasks = {}
        self.trouble = []
        self.access = "access-0"
        self.imports = 0
        self.webhook, self.headers = None, {}
        self.told = []

    def __call__(self, method, path, query, body, headers):
        if path == "/api/token/refresh":
            if body["refresh"] != "a.good.token":
                return self.error(401, "Token is invalid")
            return 200, {"access": self.access}
        if headers.get("Authorization") != f"Bearer {self.access}":
            return self.error(401, "Authentication credentials were not provided.")
        if self.trouble:
            done = self.trouble.pop(0)
            if isinstance(done, tuple):
                return done
            answer = self.answer(method, path, query, body)
            return self.error(502, "lost") if done == "lose the answer" else answer
        return self.answer(method, path, query, body)

    def error(self, status, detail):
        return status, {
            "id": "652c3759",
            "status_code": status,
            "version": "1.23.2",
            "detail": detail,
            "exc_info": None,
        }

    def answer(self, method, path, query, body):
        parts = path.strip("/").split("/")[1:]
        if parts == ["tasks"]:
            return self.list_tasks(query)
        if parts == ["projects"] and method == "POST":
            return 201, self.make_project(body)
        if parts == ["projects"]:
            found = [p for p in self.projects.values() if query["title"] in p["title"]]
            return 200, {"count": len(found), "next": None, "previous": None, "results": found}
        project = self.projects.get(int(parts[1]))
        if project is None:
            return self.error(404, "No Project matches the given query.")
        if parts[2:] == ["import"]:
            return 201, self.add(project["id"], body)
        if parts[2:] == ["export"]:
            mine = [t for t in self.tasks.values() if t["project"] == project["id"]]
            return 200, [task for task in mine if task["annotations"]]
        return 200, project

    def make_project(self, body):
        number = len(self.projects) + 1
        self.projects[number] = {"id": number, "description": "", **body}
        return self.projects[number]

    def add(self, project, rows):
        self.imports += 1
        numbers = []
        for row in rows:
            number = len(self.tasks) + 1
            self.tasks[number] = {"id": number, "project": project, "annotations": [], **row}
            numbers.append(number)
        return {"task_count": len(rows), "annotation_count": 0, "task_ids": numbers}

    def list_tasks(self, query):
        mine = [t for t in self.tasks.values() if t["project"] == int(query["project"])]
        size, page = int(query["page_size"]), int(query["page"])
        part = mine[(page - 1) * size : page * size]
        if not part and page > 1:
            return self.error(404, "Invalid page.")
        return 200, {"total_annotations": 0, "total": len(mine), "tasks": part}

    def annotate(self, task, person, choice, **more):
        """What a person's click leaves; no choice is a task that was skipped."""
        result = {"from_name": "choice", "to_name": "prompt", "type": "choices"}
        self.tasks[task]["annotations"].append(
            {
                "completed_by": person,
                "was_cancelled": choice is None,
                "lead_time": 12.5,
                "result": [] if choice is None else [result | {"value": {"choices": [choice]}}],
                **more,
            }
        )
        self.tell("ANNOTATION_CREATED", task)

    def tell(self, action, task):
        """Send an event as 1.23.2 does: once, and its own affair whether anybody takes it."""
        if self.webhook is None:
            return
        task = self.tasks[task]
        event = {
            "action": action,
            "annotation": {**task["annotations"][-1], "id": 17, "task": task["id"]},
            "task": task,
            "project": {**self.projects[task["project"]], "organization": 1, "created_by": 1},
        }
        with contextlib.suppress(httpx.HTTPError):
            self.told.append(
                httpx.post(self.webhook, json=event, headers=self.headers, timeout=1.0)
            )
