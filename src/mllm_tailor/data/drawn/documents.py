"""Documents that are no receipts: invoices, tickets, forms, paragraphs and tables."""

from __future__ import annotations

COMPOSERS: dict = {}
