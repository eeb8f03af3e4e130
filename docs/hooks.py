"""What the site takes from outside docs/: README.md as its first page, and what else the repository keeps at its root.

Pages link to it all where it lies, so that the links also hold for whoever reads them in the repository itself.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
FIGURES = "benchmarks/results"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    outside = {name: ROOT / path for path, name in PAGES.items()}
    outside |= {f"figures/{path.name}": path for path in sorted((ROOT / FIGURES).iterdir())}
    for name, path in outside.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_) -> str:
    to_root = "" if page.file.src_uri in PAGES.values() else "../"
    for path, name in PAGES.items():
        markdown = markdown.replace(f"]({to_root}{path}", f"]({name}")
    markdown = markdown.replace(f"]({to_root}{FIGURES}/", "](figures/")
    return markdown if to_root else markdown.replace("](docs/", "](")
