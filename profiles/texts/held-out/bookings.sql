-- Rooms of a guest house, who has booked them, and how busy the house is.

CREATE TABLE room (
    room_id      INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    beds         INTEGER NOT NULL CHECK (beds BETWEEN 1 AND 8),
    night_cents  INTEGER NOT NULL CHECK (night_cents > 0)
);

CREATE TABLE guest (
    guest_id  INTEGER PRIMARY KEY,
    name      TEXT NOT NULL,
    email     TEXT NOT NULL UNIQUE
);

CREATE TABLE booking (
    booking_id  INTEGER PRIMARY KEY,
    room_id     INTEGER NOT NULL REFERENCES room (room_id),
    guest_id    INTEGER NOT NULL REFERENCES guest (guest_id),
    arrives     DATE NOT NULL,
    leaves      DATE NOT NULL,
    cancelled   BOOLEAN NOT NULL DEFAULT FALSE,
    CHECK (leaves > arrives)
);

CREATE INDEX booking_by_room ON booking (room_id, arrives);

-- What is really taken: a cancelled booking blocks nothing.
CREATE VIEW stay AS
SELECT
    b.booking_id,
    b.guest_id,
    r.room_id,
    r.name AS room,
    r.night_cents,
    b.arrives,
    b.leaves
FROM booking AS b
JOIN room AS r ON r.room_id = b.room_id
WHERE NOT b.cancelled;

-- Rooms for at least two people that are free from the 3rd to the 6th of May.
SELECT r.name, r.beds, r.night_cents
FROM room AS r
WHERE r.beds >= 2
  AND NOT EXISTS (
      SELECT 1
      FROM stay AS s
      WHERE s.room_id = r.room_id
        AND s.arrives < '2025-05-06'
        AND s.leaves > '2025-05-03'
  )
ORDER BY r.night_cents, r.name;

-- Guests who came back, with the number of their stays and the last one.
SELECT g.name, COUNT(*) AS stays, MAX(s.arrives) AS last_arrival
FROM guest AS g
JOIN stay AS s ON s.guest_id = g.guest_id
GROUP BY g.guest_id, g.name
HAVING COUNT(*) > 1
ORDER BY stays DESC, last_arrival DESC;

-- Each room's share of all stays, the busiest room first.
WITH counted AS (
    SELECT r.room_id, r.name, COUNT(s.booking_id) AS stays
    FROM room AS r
    LEFT JOIN stay AS s ON s.room_id = r.room_id
    GROUP BY r.room_id, r.name
)
SELECT
    name,
    stays,
    ROUND(100.0 * stays / NULLIF(SUM(stays) OVER (), 0), 1) AS percent,
    RANK() OVER (ORDER BY stays DESC) AS place
FROM counted
ORDER BY place, name;
