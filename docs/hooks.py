"""What the site takes from outside docs/: the recorded figures, CONTRIBUTING.md and CHANGELOG.md.

The pages link to them where they lie, so that the links also hold for whoever reads docs/ in the repository itself.
"""

from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
FIGURES = "benchmarks/results"
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, *, config) -> Files:
    outside = {f"figures/{path.name}": path for path in sorted((ROOT / FIGURES).iterdir())}
    outside |= {name: ROOT / path for name, path in PAGES.items()}
    for name, path in outside.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page, **_) -> str:
    if page.file.src_uri in PAGES:
        return markdown.replace("](docs/", "](")
    for name, path in PAGES.items():
        markdown = markdown.replace(f"](../{path}", f"]({name}")
    return markdown.replace(f"](../{FIGURES}/", "](figures/")
