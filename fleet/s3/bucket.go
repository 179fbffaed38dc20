package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// errTaken is a conditional write that came too late: the object is another one.
var errTaken = errors.New("somebody else wrote it")

// errNoConditions is a server that S3 state cannot be kept on.
var errNoConditions = errors.New("the server does not honour conditional writes (If-None-Match, If-Match), without which two operators cannot be kept apart: keep the state in AWS S3 or on another server")

// most bytes of an object: a pack of records.
const maxObject = 64 << 20

// bucket is a prefix of a bucket. Keys are below the prefix.
type bucket struct {
	c      *awss3.Client
	name   string
	prefix string // "" or with / at its end
}

// object is what is there.
type object struct {
	body  []byte
	etag  string
	nonce string        // of the write that made it
	age   time.Duration // by the server's clock alone
}

func (b *bucket) where(key string) string { return "s3://" + b.name + "/" + b.prefix + key }

// get is nil for what is not there.
func (b *bucket) get(ctx context.Context, key string) (*object, error) {
	out, err := b.c.GetObject(ctx, &awss3.GetObjectInput{Bucket: &b.name, Key: aws.String(b.prefix + key)})
	if status(err) == http.StatusNotFound && code(err) != "NoSuchBucket" {
		return nil, nil
	}
	if err != nil {
		return nil, b.explain(err, "read "+b.where(key))
	}
	defer out.Body.Close()
	body, err := io.ReadAll(io.LimitReader(out.Body, maxObject+1))
	if err == nil && len(body) > maxObject {
		err = fmt.Errorf("it is larger than %d bytes", maxObject)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", b.where(key), err)
	}
	o := &object{body: body, etag: aws.ToString(out.ETag), nonce: out.Metadata["nonce"]}
	if now, ok := awsmiddleware.GetServerTime(out.ResultMetadata); ok && out.LastModified != nil {
		o.age = now.Sub(*out.LastModified)
	}
	return o, nil
}

// put writes an object if there is none (etag ""), or if it is the one with that
// etag: errTaken. A write whose answer was lost is known by its nonce, so that it
// may be done again with the same one. After any other error it may yet be done.
func (b *bucket) put(ctx context.Context, key, etag, nonce string, body []byte) (string, error) {
	in := &awss3.PutObjectInput{Bucket: &b.name, Key: aws.String(b.prefix + key), Metadata: map[string]string{"nonce": nonce}}
	if etag == "" {
		in.IfNoneMatch = aws.String("*")
	} else {
		in.IfMatch = &etag
	}
	for try := 0; ; try++ {
		in.Body = bytes.NewReader(body)
		out, err := b.c.PutObject(ctx, in)
		if err == nil {
			return aws.ToString(out.ETag), nil
		}
		met := refused(err)
		if !met && definite(err) || ctx.Err() != nil {
			return "", b.explain(err, "write "+b.where(key))
		}
		is, gerr := b.get(ctx, key)
		switch {
		case gerr != nil:
			return "", b.explain(err, "write "+b.where(key))
		case is != nil && is.nonce == nonce:
			return is.etag, nil
		case status(err) == http.StatusConflict && try < 5 && (is == nil && etag == "" || is != nil && is.etag == etag):
			// Another write came in between, and was not done.
			if err := pause(ctx, 20*time.Millisecond<<try); err != nil {
				return "", err
			}
		case met:
			return "", fmt.Errorf("%w: %s", errTaken, b.where(key))
		default:
			return "", b.explain(err, "write "+b.where(key))
		}
	}
}

// list is every key below dir that comes after the given one, and with the
// delimiter "/" the folders in dir.
func (b *bucket) list(ctx context.Context, dir, after, delimiter string) (keys, dirs []string, err error) {
	in := &awss3.ListObjectsV2Input{Bucket: &b.name, Prefix: aws.String(b.prefix + dir)}
	if after != "" {
		in.StartAfter = aws.String(b.prefix + after)
	}
	if delimiter != "" {
		in.Delimiter = &delimiter
	}
	for {
		out, err := b.c.ListObjectsV2(ctx, in)
		if err != nil {
			return nil, nil, b.explain(err, "list "+b.where(dir))
		}
		for _, o := range out.Contents {
			keys = append(keys, strings.TrimPrefix(aws.ToString(o.Key), b.prefix))
		}
		for _, p := range out.CommonPrefixes {
			dirs = append(dirs, strings.TrimPrefix(aws.ToString(p.Prefix), b.prefix))
		}
		if !aws.ToBool(out.IsTruncated) || out.NextContinuationToken == nil {
			return keys, dirs, nil
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// remove removes objects, 1000 in a call. What is not there is no error.
func (b *bucket) remove(ctx context.Context, keys []string) error {
	for some := range slices.Chunk(keys, 1000) {
		var ids []types.ObjectIdentifier
		for _, k := range some {
			ids = append(ids, types.ObjectIdentifier{Key: aws.String(b.prefix + k)})
		}
		out, err := b.c.DeleteObjects(ctx, &awss3.DeleteObjectsInput{Bucket: &b.name, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)}})
		if err != nil {
			return b.explain(err, "remove "+b.where(some[0]))
		}
		for _, e := range out.Errors {
			return fmt.Errorf("remove s3://%s/%s: %s %s", b.name, aws.ToString(e.Key), aws.ToString(e.Code), aws.ToString(e.Message))
		}
	}
	return nil
}

// prove sees once that the server honours conditions: it must refuse two writes.
func (h *Home) prove(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.proved {
		return nil
	}
	const key = "conditional-writes"
	text := []byte("rebake sees here that this server refuses writes whose condition does not hold.\n")
	write := func(match, none *string) error {
		_, err := h.c.PutObject(ctx, &awss3.PutObjectInput{Bucket: &h.name, Key: aws.String(h.prefix + key), Body: bytes.NewReader(text), IfMatch: match, IfNoneMatch: none})
		return err
	}
	none, other := aws.String("*"), aws.String(`"00000000000000000000000000000000"`)
	err := write(nil, none)
	if err == nil { // it made it
		err = write(nil, none)
	}
	if refused(err) {
		err = write(other, nil)
	}
	switch {
	case err == nil, status(err) == http.StatusNotImplemented:
		return fmt.Errorf("%s: %w", h.where(""), errNoConditions)
	case !refused(err):
		return h.explain(err, "write "+h.where(key))
	}
	h.proved = true
	return nil
}

func newNonce() string { return rand.Text() }

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func status(err error) int {
	var r *awshttp.ResponseError
	if errors.As(err, &r) {
		return r.HTTPStatusCode()
	}
	return 0
}

func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return ""
}

// refused is the answer to a write whose condition does not hold, or did not
// while another was at it. If-Match of what is not there is 404.
func refused(err error) bool {
	s := status(err)
	return s == http.StatusPreconditionFailed || s == http.StatusConflict || s == http.StatusNotFound && code(err) != "NoSuchBucket"
}

// definite is an answer after which the write was surely not done.
func definite(err error) bool {
	s := status(err)
	return s >= 300 && s < 500 && s != http.StatusRequestTimeout
}

// explain says what to do about it.
func (b *bucket) explain(err error, what string) error {
	hint := ""
	switch s, c := status(err), code(err); {
	case c == "NoSuchBucket":
		hint = fmt.Sprintf("there is no bucket %s: make it (`aws s3 mb s3://%s`), or correct the state's address", b.name, b.name)
	case c == "RequestTimeTooSkewed":
		hint = "this computer's clock is wrong by more than S3 takes: set it"
	case s == http.StatusMovedPermanently || c == "AuthorizationHeaderMalformed" || c == "IllegalLocationConstraintException":
		hint = fmt.Sprintf("bucket %s is in another region: set AWS_REGION to it", b.name)
	case s == http.StatusForbidden:
		hint = fmt.Sprintf("needed are s3:ListBucket on bucket %s, and s3:GetObject, s3:PutObject and s3:DeleteObject on %s", b.name, b.where("*"))
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w (%s)", what, err, hint)
}
