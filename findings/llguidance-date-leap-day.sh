#!/usr/bin/env bash
# llguidance 1.9.1: a JSON schema string of `format: date` admits 29 February of every year, though it knows that
# 30 February and 31 April do not exist. RFC 3339, section 5.7, to which the format refers, has a table of days by month
# and leap year. A reply held to such a schema can therefore be a date that datetime.date.fromisoformat refuses.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1 2>/dev/null
"$folder/env/bin/python" - <<'PYTHON' | tee "$folder/seen"
import json

from llguidance import LLMatcher, LLTokenizer

grammar = LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", "format": "date"}))
for day in ("2024-02-29", "2023-02-29", "2023-02-30", "2023-04-31"):
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    accepted = all(matcher.consume_token(byte) for byte in json.dumps(day).encode()) and matcher.is_accepting()
    print(day, accepted)
PYTHON
diff "$folder/seen" - <<'EXPECTED' && echo "as found"
2024-02-29 True
2023-02-29 True
2023-02-30 False
2023-04-31 False
EXPECTED
