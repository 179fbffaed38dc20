package ami

import (
	"context"
	"encoding/json"
	"time"

	"github.com/rebake/rebake/artifact"
)

// Kind is the attachment that records an image's AMIs.
const Kind = "application/vnd.rebake.ami.v1+json"

// Keep attaches a record to the image. The same record again changes nothing.
func Keep(ctx context.Context, a artifact.Attacher, img artifact.Image, r Record) error {
	have, err := attached[Record](ctx, a, img, Kind)
	if err != nil {
		return err
	}
	for _, h := range have {
		if h.Region == r.Region && h.AMI == r.AMI {
			return nil
		}
	}
	doc, body, err := r.Attachment(time.Now())
	if err != nil {
		return err
	}
	_, err = a.Attach(ctx, img.Digest, doc, body)
	return err
}

// Attachment is the record as an image keeps it.
func (r Record) Attachment(created time.Time) (artifact.Attachment, []byte, error) {
	body, err := json.Marshal(r)
	return artifact.Attachment{Kind: Kind, Media: "application/json", Created: created.UTC().Truncate(time.Second),
		Notes: map[string]string{"dev.rebake.region": r.Region, "dev.rebake.ami": r.AMI}}, body, err
}

// Records are the AMIs that were made of an image and not removed by rebake since,
// oldest first. That they are still there is not asked.
func Records(ctx context.Context, a artifact.Attacher, img artifact.Image) ([]Record, error) {
	all, err := All(ctx, a, img)
	var out []Record
	for _, m := range all {
		if !m.Gone() {
			out = append(out, m.Record)
		}
	}
	return out, err
}

// maxParents bounds how many earlier AMIs a new one is compared with.
const maxParents = 5

// Parents are records that an image's snapshot may be built on: of the image that
// it was made from, then of its name's other images, the newest first. Records
// that cannot be read are passed over: they would only save bytes.
func Parents(ctx context.Context, s artifact.Store, img artifact.Image, region string) ([]Record, error) {
	a, ok := s.(artifact.Attacher)
	l, lists := s.(artifact.Lister)
	if !ok || !lists {
		return nil, nil
	}
	all, err := l.List(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []Record
	add := func(of artifact.Image) {
		records, err := Records(ctx, a, of)
		if err != nil {
			return
		}
		for _, r := range records {
			if r.Region == region && len(out) < maxParents {
				out = append(out, r)
			}
		}
	}
	for _, of := range all {
		if of.Digest == img.Lineage.ParentDigest {
			add(of)
		}
	}
	for _, of := range all {
		if of.Name == img.Name && of.Digest != img.Digest && of.Digest != img.Lineage.ParentDigest {
			add(of)
		}
	}
	return out, nil
}
