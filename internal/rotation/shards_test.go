package rotation

import "testing"

func TestShardsComeInRoundsOfTheWorkers(t *testing.T) {
	for _, c := range []struct {
		rows                  int64
		workers, limit, wants int
	}{
		{1, 4, 16, 1}, {999, 4, 16, 1}, {1000, 4, 16, 4}, {8000, 4, 16, 12}, {12_000, 4, 16, 16}, {1_000_000, 4, 16, 16},
		{1000, 4, 3, 3}, {5000, 1, 16, 6}, {5000, 7, 16, 7},
	} {
		e := &Engine{cfg: Config{Workers: c.workers, Shards: c.limit, RowsPerShard: 1000}}
		if got := e.shardsFor(c.rows); got != c.wants {
			t.Errorf("%d rows, %d workers, at most %d shards: %d, want %d", c.rows, c.workers, c.limit, got, c.wants)
		}
	}
}
