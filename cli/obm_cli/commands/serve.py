"""`obm serve`: a registry over HTTP."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path

import click

from obm_cli import output, settings
from obm_cli.paths import InputPath
from obm_format.errors import UsageError


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=7700, show_default=True, help="Port, 0 for a free one.")
@click.option("--db", metavar="URL", help="Catalog, sqlite:///PATH [default: registry.sqlite3 in OBM_HOME].")
@click.option(
    "--blobs", metavar="URL", help="Stored bytes, file:///PATH or s3://BUCKET/PREFIX [default: data in OBM_HOME]."
)
@click.option(
    "--anonymous", type=click.Choice(["none", "pull"]), default="none", show_default=True,
    help="What callers without a token may do; pull is limited to namespaces that are public.",
)  # fmt: skip
@click.option("--tls-cert", type=InputPath(path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=InputPath(path_type=Path), help="Its private key, PEM.")
@click.option("--insecure-http", is_flag=True, help="Listen beyond this machine without TLS.")
@output.json_option
def command(
    host: str, port: int, db: str | None, blobs: str | None, anonymous: str, tls_cert: Path | None,
    tls_key: Path | None, insecure_http: bool, as_json: bool,
) -> None:  # fmt: skip
    """Serve the registry over HTTP.

    Stock OCI clients push to it and pull from it, as `obm push` and `obm pull` do. The first start makes an
    administrator and writes its token to a file that only you can read. Ctrl-C or SIGTERM ends it.

    With --blobs s3://... whoever pulls is sent to the bucket, by addresses that are good for five minutes and for
    one blob; the server needs AWS credentials, in the environment or as boto3 finds them, its clients none.

    Example: obm serve --port 7700
    """
    if importlib.util.find_spec("granian") is None or importlib.util.find_spec("starlette") is None:
        hint = "pip install 'obm-format[server]'"
        raise UsageError("missing_dependency", "a server needs starlette and granian", hint=hint)
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("usage", "--tls-cert and --tls-key belong together")
    from obm_registry.server.run import ServeOptions, serve

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("obm").setLevel(logging.INFO)
    tls = (tls_cert, tls_key) if tls_cert is not None and tls_key is not None else None
    options = ServeOptions(
        home=settings.home(), host=host, port=port, db=db, blobs=blobs, strangers=anonymous == "pull",
        tls=tls, insecure_http=insecure_http,
    )  # fmt: skip

    def ready(url: str, token_file: Path) -> None:
        if as_json:
            line = json.dumps({"schema": "obm.serve/1", "url": url, "token_file": str(token_file)})
        else:
            line = f"obm registry at {url}"
        output.say(line)
        sys.stdout.flush()
        if not as_json:
            output.say(f"  log in     obm login {url} --token-file {token_file}")
            output.say(f"  stock      skopeo login -u admin --password-stdin {url.partition('//')[2]} < {token_file}")
            output.say("  more       obm token create NAME --role writer --namespace acme")
            sys.stdout.flush()

    serve(options, ready)
