"""Draw scores: the HTML report of a run, terminal tables, charts and sentences."""

from __future__ import annotations

from mllm_tailor.reporting.cases import choose
from mllm_tailor.reporting.html import render, write_report
from mllm_tailor.reporting.learning_curve import write_curve
from mllm_tailor.reporting.report_data import Cost, Curves, LedgerLine, ReportData
from mllm_tailor.reporting.stages import write_stages

__all__ = [
    "Cost",
    "Curves",
    "LedgerLine",
    "ReportData",
    "choose",
    "render",
    "write_curve",
    "write_report",
    "write_stages",
]
