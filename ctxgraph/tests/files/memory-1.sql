-- A memory.db of version 1, as the code of version 1 made it (git show 08849ed).
PRAGMA application_id=1312967985;
PRAGMA user_version=1;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    agent TEXT NOT NULL,
    seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    parent BLOB,
    unix_ms INTEGER NOT NULL,
    links TEXT NOT NULL DEFAULT '[]',
    labels TEXT NOT NULL DEFAULT '{}',
    value_hash BLOB NOT NULL,
    value TEXT
) STRICT;
INSERT INTO entry VALUES(1,X'c1ce36c81b7f47789977164c0b1c481087311a33938e79bbae823de545bea870','researcher',0,'notes/1',NULL,1700000001500,'[]','{}',X'aa58fba8483623bed37c1b02edfccbdd9a53123837c20bfa4cb4049993a2872e','{"a":"é","b":1}');
INSERT INTO entry VALUES(2,X'eb76923a5742b4aaa3617c874e49a58fd96d6a0b7f8319e17631e2570a09ae0b','researcher',1,'notes/2',NULL,1700000003000,'[]','{}',X'7e6f90e784aabc4110742fdfeb567e6a20f06fe41a5915ca120d2309e2a4d266','"the second note"');
INSERT INTO entry VALUES(3,X'a27719445017f394308bb43fe4e0d0feb3e27a2934ab059d7d086b6f135e84c4','researcher',2,'notes/1',X'c1ce36c81b7f47789977164c0b1c481087311a33938e79bbae823de545bea870',1700000004500,'[]','{}',X'06c264c46ad5ada9493abd3aa2383fb205ae99d7d0bad40b03a43bfec8a1b8de','{"a":"é","b":2}');
INSERT INTO entry VALUES(4,X'de2ddb8f062b595ea2dbb59eb1386b7f498a10e965af78139cc4d1f406ba7e17','librarian',0,'index',NULL,1700000006000,'[]','{}',X'd3e88e473668206fa69a0542cf5b9deba7a970c9086676dbd9661cdc10fe5143','["notes/1","notes/2"]');
INSERT INTO entry VALUES(5,X'841872e05a0b55ee7157c3e5966ae1dd3d3c3f81fc18b6058a4d102b794aaaf7','researcher',3,'notes/1',X'a27719445017f394308bb43fe4e0d0feb3e27a2934ab059d7d086b6f135e84c4',1700000007500,'[]','{}',X'aa58fba8483623bed37c1b02edfccbdd9a53123837c20bfa4cb4049993a2872e','{"a":"é","b":1}');
INSERT INTO entry VALUES(6,X'fbe87a25b11697e4b95ccaec453a0906d7bb9327f47c53e08ea3bb7ea8615a33','researcher',4,'z''􏿿"',NULL,1700000009000,'[]','{}',X'74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b','null');
INSERT INTO entry VALUES(7,X'6167912d46388b320e01be84de2f8db58e9ee05747fb38dab3f37fccbd65cc06','librarian',1,'index',X'de2ddb8f062b595ea2dbb59eb1386b7f498a10e965af78139cc4d1f406ba7e17',1700000010500,'[]','{}',X'0b1af6b73e932475817f8eb620deecf21ad7570df3400a23db5c79a9001597f7','1e+23');
CREATE TABLE head (
    agent TEXT NOT NULL,
    key TEXT NOT NULL,
    entry INTEGER NOT NULL REFERENCES entry (id),
    PRIMARY KEY (agent, key)
) STRICT, WITHOUT ROWID;
INSERT INTO head VALUES('librarian','index',7);
INSERT INTO head VALUES('researcher','notes/1',5);
INSERT INTO head VALUES('researcher','notes/2',2);
INSERT INTO head VALUES('researcher','z''􏿿"',6);
CREATE TABLE agent (
    name TEXT PRIMARY KEY,
    entries INTEGER NOT NULL,
    keys INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    next_seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO agent VALUES('librarian',2,1,36,2);
INSERT INTO agent VALUES('researcher',5,3,104,5);
CREATE TABLE witness (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    seq INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;
INSERT INTO witness VALUES(0,6,X'0606060606060606060606060606060606060606060606060606060606060606');
CREATE INDEX entry_key ON entry (agent, key, seq);
CREATE INDEX entry_seq ON entry (agent, seq);
COMMIT;
