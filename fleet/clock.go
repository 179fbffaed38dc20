package fleet

import "time"

func (d *Deployer) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

// rewound is the record by a clock that was set back to before its state began.
// Its deadline is as far away as it was then: a hold of ten seconds does not
// become one of an hour. Within one process Go compares by a clock that nobody
// sets; this is for a deployment that another process goes on with.
func (r Record) rewound(now time.Time) Record {
	if !now.Before(r.Since) {
		return r
	}
	r.Since, r.Deadline = now, now.Add(r.Deadline.Sub(r.Since))
	for _, t := range []*time.Time{&r.Wrong, &r.Sick, &r.Drained} {
		if t.After(now) {
			*t = now
		}
	}
	return r
}

// unwatched is how far apart two looks of a hold may be, and all of the time
// between them counts.
const unwatched = 2 * sampleEvery

// watched is the record of a hold in which time counts only while somebody
// looked: a deployment that was killed in a hold and is resumed an hour later, or
// whose clock was set forward, has not held for an hour.
func (r Record) watched(now time.Time) Record {
	last := r.Since
	if r.Marks.At.After(last) {
		last = r.Marks.At
	}
	if gap := now.Sub(last) - unwatched; gap > 0 && last.Before(r.Deadline) {
		r.Since, r.Deadline = r.Since.Add(gap), r.Deadline.Add(gap)
	}
	return r
}
