"""Certificates for tests, made by openssl and trusted by themselves."""

import subprocess
from pathlib import Path


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """(key, certificate) of that name, `DNS:hooks.test` or `IP:127.0.0.1`, good for two days."""
    key, made = folder / "key.pem", folder / "certificate.pem"
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    subject = ["-subj", f"/CN={name.partition(':')[2]}", "-addext", f"subjectAltName={name}"]
    subprocess.run([*new, *subject, "-keyout", key, "-out", made], check=True, capture_output=True)
    return key, made
