"""What every Python client is given: where the server is, a receipt, and a class for what is read."""

import base64
import mimetypes
import os
from pathlib import Path

from pydantic import create_model

URL, MODEL = os.environ["CLIENT_URL"], os.environ["CLIENT_MODEL"]
IMAGE = Path(os.environ["CLIENT_IMAGE"])
MEDIA_TYPE = mimetypes.guess_type(IMAGE)[0] or "image/png"
DATA = IMAGE.read_bytes()
IMAGE_URL = f"data:{MEDIA_TYPE};base64,{base64.b64encode(DATA).decode()}"
Receipt = create_model("Receipt", **dict.fromkeys(os.environ["CLIENT_FIELDS"].split(","), (str, ...)))
