"""The page of the package: README.md, whose links are those of a checkout, with links that lead there from anywhere.

Everything else is in pyproject.toml.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
REPOSITORY = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def absolute(text: str) -> str:
    """Markdown whose relative links lead to the repository; pictures to the file itself."""
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/raw/main/", text)
    return re.sub(r"(\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/main/", text)


setup(long_description=absolute((HERE / "README.md").read_text("utf-8")), long_description_content_type="text/markdown")
