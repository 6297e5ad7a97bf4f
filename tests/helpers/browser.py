"""A page in a browser: the answer that a script of a test leaves in it."""

import json
import re
from html import unescape


def answer(text):
    return json.loads(unescape(re.search(r'<pre id="answer">(.*?)</pre>', text, re.DOTALL)[1]))


def without_policy(page):
    """The page as a script of the test may look at it."""
    return re.sub(r"<meta http-equiv=.*?>", "", page.read_text(encoding="utf-8"))
