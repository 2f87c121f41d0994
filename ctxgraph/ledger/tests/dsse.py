"""Asks securesystemslib what it thinks of DSSE envelopes: JSON list of {envelope, keyid, key_hex} in, list of verdicts out.

A verdict is the payload as JSON where the signature holds, else null.
"""
import json, sys

from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey


def verdict(case):
    key = SSlibKey(case["keyid"], "ed25519", "ed25519", {"public": case["key_hex"]})
    try:
        envelope = Envelope.from_dict(json.loads(case["envelope"]))
        envelope.verify([key], 1)
        return json.loads(envelope.payload)
    except Exception:
        return None


json.dump([verdict(case) for case in json.load(sys.stdin)], sys.stdout)
