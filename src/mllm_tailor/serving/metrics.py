"""Counters for Prometheus: requests, tokens, waiting times. No label holds a word of a request."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mllm_tailor.core.machine import resident_memory

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
TENTHS = tuple(number / 10 for number in range(1, 11))


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tailor_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=self.registry
        )
        self.prompt_tokens = Counter("tailor_prompt_tokens", "Tokens of prompts", ["model"], registry=self.registry)
        self.reply_tokens = Counter("tailor_reply_tokens", "Tokens of replies", ["model"], registry=self.registry)
        self.cut = Counter("tailor_cut_replies", "Replies that reached their limit", ["model"], registry=self.registry)
        self.confidence = Histogram(
            "tailor_confidence",
            "Confidence of values of a run's own task",
            ["model", "field"],
            buckets=TENTHS,
            registry=self.registry,
        )
        self.drift = Gauge(
            "tailor_drift",
            "1 if confidences of the last full window differ from those of the held-out split",
            ["model", "field"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "tailor_request_seconds", "Time to an answer", ["endpoint"], buckets=SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("tailor_requests_in_flight", "Requests in the server", registry=self.registry)
        self.waiting = Gauge("tailor_jobs_waiting", "Samples that wait for the model", registry=self.registry)
        self.ready = Gauge("tailor_ready", "1 once every model is loaded", registry=self.registry)
        self.memory = Gauge("tailor_resident_bytes", "Memory of the process", registry=self.registry)

    def text(self, *, waiting: int, ready: bool) -> bytes:
        """All figures in Prometheus' text format."""
        self.waiting.set(waiting)
        self.ready.set(ready)
        self.memory.set(resident_memory())
        return generate_latest(self.registry)
