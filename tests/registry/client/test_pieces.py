"""Pieces in which a blob comes: as large as what has arrived, the same bytes in the end."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

from registry_server import digest_of

from obm_registry.client.http import Session
from obm_registry.client.journal import Journal
from obm_registry.client.origin import parse_origin
from obm_registry.client.remote import RemoteStore
from obm_registry.manifest.oci import Descriptor

DATA = os.urandom(1 << 20)


def answer(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA)


def test_what_has_arrived_is_taken_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=answer, args=(listening,))
        server.start()
        store = RemoteStore(
            Session(parse_origin(f"127.0.0.1:{listening.getsockname()[1]}"), lambda _: None), Journal(tmp_path)
        )
        pieces = []
        for piece in store.read_blob("acme/tiny", Descriptor(media_type="", digest=digest_of(DATA), size=len(DATA))):
            pieces.append(piece)
            time.sleep(0.05)  # more arrives meanwhile
        store.close()
        server.join()
    assert b"".join(pieces) == DATA
    assert max(map(len, pieces)) > 65_536
