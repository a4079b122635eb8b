"""CSV tables with the columns `id` and `sequence`."""

import csv
import io

from axfold.data.formats.fasta import Record
from axfold.errors import InputError


def parse(text: str, source: str) -> tuple[Record, ...]:
    """One record a row; further columns and blank rows are skipped.

    Raises InputError, naming `source` and the line, for a header without `id` and `sequence`, a row that lacks
    one, and quotes that don't close.
    """
    limit = csv.field_size_limit(max(len(text), 1))  # the module's own limit is shorter than long proteins
    try:
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip().lower() for name in next(rows, [])]
        if not {"id", "sequence"} <= set(header):
            raise InputError(f"{source}, line 1: a table starts with the header 'id,sequence'.")
        at_id, at_sequence = header.index("id"), header.index("sequence")
        records = []
        for row in rows:
            if not any(map(str.strip, row)):
                continue
            if len(row) <= max(at_id, at_sequence):
                raise InputError(
                    f"{source}, line {rows.line_num}: the row has {len(row)} column{'s' * (len(row) > 1)} and the "
                    f"header {len(header)}."
                )
            name = row[at_id].strip()
            records.append(Record(name, name, "".join(row[at_sequence].split()), rows.line_num))
        return tuple(records)
    except csv.Error as error:
        raise InputError(f"{source}, line {rows.line_num}: this is no CSV: {error}.") from error
    finally:
        csv.field_size_limit(limit)
