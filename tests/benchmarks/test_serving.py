"""What the benchmark of the service reads off it."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from benchmarks.serving import counted
from hypercast.serving.metrics import Metrics


def test_swaps_are_those_that_the_service_has_counted() -> None:
    metrics = Metrics()

    class Exposition(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(metrics.text())

        def log_message(self, *given: object) -> None:
            """Not to standard error."""

    with HTTPServer(("127.0.0.1", 0), Exposition) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        assert counted(port, "hypercast_swaps_total", outcome="swapped") == 0
        metrics.swaps.labels("failed").inc(5)
        metrics.swaps.labels("swapped").inc(2)
        assert counted(port, "hypercast_swaps_total", outcome="swapped") == 2
        server.shutdown()
