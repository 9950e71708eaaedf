#!/usr/bin/env python3
"""Checks the documents: links lead somewhere, snippets are valid in their language, and what the
examples' document quotes stands in the examples."""

import ast
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUOTED_LANGUAGES = ("python", "javascript", "html")


def main():
    complaints = []
    documents = [ROOT / "README.md", *sorted((ROOT / "doc").rglob("*.md"))]
    snippet_count = 0
    for document in documents:
        text = document.read_text()
        name = document.relative_to(ROOT)
        for problem in broken_links(document, text):
            complaints.append("%s: %s" % (name, problem))
        for line, language, snippet in snippets(text):
            snippet_count += 1
            problem = CHECKS.get(language, lambda _: None)(snippet)
            if problem:
                complaints.append("%s:%d: %s: %s" % (name, line, language, problem))
            if name == pathlib.Path("doc/examples.md") and language in QUOTED_LANGUAGES:
                if not is_quoted(snippet):
                    complaints.append("%s:%d: stands in no example" % (name, line))
    for complaint in complaints:
        print(complaint)
    print(
        "%d documents, %d snippets, %d complaints"
        % (len(documents), snippet_count, len(complaints))
    )
    sys.exit(1 if complaints else 0)


def broken_links(document, text):
    """Relative links, and the headings they point to."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        if not linked.exists():
            yield "leads nowhere: %s" % target
        elif anchor and anchor not in anchors(linked.read_text()):
            yield "no such heading: %s" % target


def anchors(text):
    """The names that headings get: lower case, hyphens for blanks, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", it.lower()).replace(" ", "-") for it in headings}


def snippets(text):
    """Line, language and content of each fenced block."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        yield text.count("\n", 0, match.start()) + 1, match[1], match[2]


def is_quoted(snippet):
    lines = [it.strip() for it in snippet.strip().splitlines()]
    for path in (ROOT / "examples").glob("*/*"):
        if path.suffix in (".py", ".html"):
            theirs = [it.strip() for it in path.read_text().splitlines()]
            if any(theirs[at : at + len(lines)] == lines for at in range(len(theirs))):
                return True
    return False


def check_python(snippet):
    try:
        ast.parse(snippet)
    except SyntaxError as error:
        # An excerpt may end in the middle of a function, or begin in one.
        try:
            ast.parse("def f():\n" + snippet)
        except SyntaxError:
            return str(error)
    return None


def check_shell(snippet):
    return run(["bash", "-n"], snippet)


def check_toml(snippet):
    try:
        tomllib.loads(snippet)
    except tomllib.TOMLDecodeError as error:
        return str(error)
    return None


def check_nginx(snippet):
    """The snippet belongs into `http`; ports that need root become others."""
    with tempfile.TemporaryDirectory() as directory:
        snippet = snippet.replace("listen 80;", "listen 127.0.0.1:18080;")
        path = pathlib.Path(directory, "nginx.conf")
        path.write_text(
            "pid %s/pid; error_log stderr; events {} http { access_log off;\n%s}"
            % (directory, snippet)
        )
        return run([tool("nginx"), "-t", "-q", "-p", directory, "-c", str(path)])


def check_haproxy(snippet):
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(snippet)
        file.flush()
        return run([tool("haproxy"), "-c", "-f", file.name])


CHECKS = {
    "python": check_python,
    "sh": check_shell,
    "toml": check_toml,
    "nginx": check_nginx,
    "haproxy": check_haproxy,
}


def tool(name):
    path = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if path is None:
        sys.exit("%s is missing; on Debian: apt-get install %s" % (name, name))
    return path


def run(command, text=""):
    """What the command complains about."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    return None if done.returncode == 0 else done.stderr.strip() or "refused"


if __name__ == "__main__":
    main()
