"""Certificates made on the spot with the openssl command: an authority and what it has signed."""

import ssl
import subprocess
from pathlib import Path

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


class Authority:
    """A private certificate authority in a directory; `file` is what a client must trust."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.file = directory / f"{name}.pem"
        self._key = directory / f"{name}.key"
        self._openssl(
            "req", "-x509", *KEY, "-keyout", self._key, "-out", self.file, "-subj", f"/CN={name}", "-days", "2"
        )

    def server(self, name: str, *, host: str = "IP:127.0.0.1", days: int = 2) -> ssl.SSLContext:
        """A server's side of TLS with a certificate for `host`; with -1 `days` it expired yesterday."""
        key, request, certificate, extension = (
            self.directory / f"{name}{end}" for end in (".key", ".csr", ".pem", ".ext")
        )
        extension.write_text(f"subjectAltName={host}\nauthorityKeyIdentifier=keyid\n")
        self._openssl("req", "-new", *KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signing = ["-CA", self.file, "-CAkey", self._key, "-CAcreateserial", "-days", str(days), "-extfile", extension]
        self._openssl("x509", "-req", "-in", request, "-out", certificate, *signing)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
