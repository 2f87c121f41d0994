"""Asks scitt-cose about receipts and proofs: a JSON array of cases on standard input, an array of verdicts on standard output."""

import json
import sys

from scitt_cose import merkle, receipt


def verdict(case):
    kind = case.pop("kind")
    if kind == "receipt":
        result = receipt.verify_receipt(
            bytes.fromhex(case["receipt"]), leaf_entry_hex=case["leaf"], log_public_key_pem=case["key"]
        )
        return {"ok": result.ok, "root": result.root if result.ok else None}
    check = {"inclusion": merkle.verify_inclusion, "consistency": merkle.verify_consistency}[kind]
    return {"ok": bool(check(**case)), "root": None}


json.dump([verdict(case) for case in json.load(sys.stdin)], sys.stdout)
