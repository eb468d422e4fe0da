"""The README as a package index shows it; everything else is in setup.cfg."""

import configparser
import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent


def readme() -> str:
    """The README with links to files made absolute, or plain text where no source is known."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    urls = dict(
        line.split(" = ") for line in config["metadata"]["project_urls"].split("\n") if line
    )
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    source = urls.get("Source")
    linked = r"\1" if source is None else rf"[\1]({source.rstrip('/')}/blob/main/\2)"
    # Images first: as text they would be nothing.
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n?", "" if source is None else r"\g<0>", text)
    return re.sub(r"\[([^]]+)\]\((?!https?:|#)([^)]+)\)", linked, text)


setuptools.setup(long_description=readme(), long_description_content_type="text/markdown")
