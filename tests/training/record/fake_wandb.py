"""A W&B server on loopback with all that an online run of wandb 0.31 needs.

It takes logs, finishing, resuming, files and media.
"""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

API_KEY = "0123456789abcdef" * 2 + "01234567"


class FakeRun:
    """What the server knows of one run."""

    def __init__(self):
        self.fields, self.config, self.uploads = {}, {}, {}
        self.history, self.exit_codes, self.starts = (
            {},
            [],
            0,
        )  # history: line number -> line, as the server keys them

    @property
    def lines(self):
        return [self.history[number] for number in sorted(self.history)]

    def bucket(self):
        tail = json.dumps([json.dumps(line) for line in self.lines[-1:]])
        return {
            "id": "run",
            "name": self.fields["name"],
            "displayName": self.fields["displayName"],
            "description": None,
            "config": json.dumps(self.config),
            "wandbConfig": json.dumps({"t": 1}),
            "tags": self.fields.get("tags", []),
            "notes": None,
            "summaryMetrics": "{}",
            "sweepName": None,
            "historyTail": tail,
            "eventsTail": "[]",
            "historyLineCount": len(self.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "project": {
                "id": "project",
                "name": self.fields["project"],
                "entity": {"id": "entity", "name": "tester"},
            },
        }


class FakeWandb:
    """The server, running between `with` and its end, or until `stop`.

    `answer` is the HTTP status of every answer; with another than 200 there is nothing in it.
    """

    def __init__(self, answer=200):
        self.runs, self.answer = {}, answer
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *error):
        self.stop()

    def stop(self):
        """Close the port: from then on a connection is refused."""
        self.server.shutdown()
        self.server.server_close()

    def graphql(self, query, variables):
        if "upsertBucket" in query:
            known = variables["name"] in self.runs
            run = self.runs.setdefault(variables["name"], FakeRun())
            run.starts += (
                variables.get("displayName") is not None
            )  # later ones only update the configuration
            run.fields |= {key: value for key, value in variables.items() if value is not None}
            run.config |= json.loads(variables["config"] or "{}")
            return {"upsertBucket": {"bucket": run.bucket(), "inserted": not known}}
        if "createRunFiles" in query:
            folder = f"{self.url}/upload/{variables['run']}"
            files = [
                {"name": name, "uploadUrl": f"{folder}/{quote(name)}"}
                for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        if "RunResumeStatus" in query:
            run = self.runs.get(variables["name"])
            return {
                "model": run
                and {
                    "id": "p",
                    "name": "p",
                    "entity": {"id": "e", "name": "tester"},
                    "bucket": run.bucket(),
                }
            }
        return {
            "viewer": {
                "id": "viewer",
                "entity": "tester",
                "username": "tester",
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    def file_stream(self, run, body):
        history = body.get("files", {}).get("wandb-history.jsonl")
        if history is not None:
            numbered = enumerate(history["content"], start=history["offset"])
            run.history |= {number: json.loads(line) for number, line in numbered}
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])
        return {}


def _handler(fake):
    class Handler(
        BaseHTTPRequestHandler
    ):  # HTTP/1.0: no connection outlives its answer, so `stop` cuts everything off
        def log_message(self, *arguments):
            pass

        def handle(self):
            with suppress(ConnectionError):  # the client may leave without waiting for an answer
                super().handle()

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            _, kind, *rest = unquote(self.path).split("/", 4)
            content = {}
            if fake.answer != 200:
                pass
            elif kind == "graphql":
                request = json.loads(body)
                content = {"data": fake.graphql(request["query"], request["variables"])}
            elif kind == "files":  # /files/ENTITY/PROJECT/RUN/file_stream
                run = fake.runs[rest[-1].split("/")[0]]
                content = fake.file_stream(run, json.loads(body))
            elif kind == "upload":  # /upload/RUN/PATH
                fake.runs[rest[0]].uploads["/".join(rest[1:])] = body
            answer = json.dumps(content).encode()
            self.send_response(fake.answer)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_PUT = do_GET = do_POST  # noqa: N815

    return Handler
