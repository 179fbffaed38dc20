// Package awsfake is an AWS in memory that speaks the wire protocol: EC2, Auto
// Scaling, Elastic Load Balancing v2, the EBS direct APIs, CloudWatch, and a little
// of SSM and STS. The SDK is pointed at it by AWS_ENDPOINT_URL. What it does is
// what the services' documents and the SDK's model say; what moto does not have is
// the reason for it: time that passes, traffic, health, and faults.
//
//	c := awsfake.Start(t) // a thousand times as fast as AWS; c.Close at the end of the test
//	ami := c.AddImage("eu-central-1", ec2types.Image{Name: aws.String("debian")})
//
// Outside of a test: c := awsfake.New(); url := c.Serve(); c.Env(url) is the
// environment of another process; c is an http.Handler too.
//
// # Time
//
// Every duration of AWS is divided by Speed: Delays (pending, shutting down, image,
// snapshot, metric, …), health check intervals, deregistration delays, warm-up, bake
// time, checkpoints, the heartbeat of hooks, and the rates of throttling rise with it. What
// is recorded with a time has it from Now, which is the wall clock: a client asks
// CloudWatch for its own now. A health check's timeout is never under two seconds.
//
// # Instances
//
// Each has an address of its own in 127/8, private and public. Backend is asked for
// what answers its requests; without it the cloud answers 200 with X-Instance-Id and
// X-Image-Id, or what Status says. EndInstance is a machine that dies. VolumeContent
// is what a snapshot of its volume holds; SnapshotBlocks reads one back.
//
// # Load balancers
//
// A listener really listens: at the balancer's DNSName (an address of 127/8) and its
// port where the system allows it, and in any case at ListenerURL. Requests go by
// rules, weights and stickiness to targets whose health is really checked; a group
// with too few healthy targets fails open; a draining target gets no new request and
// keeps those in flight until the deregistration delay cuts them; one whose instance
// is terminated without draining fails requests. No request is tried twice. Slow
// start is kept to. Traffic counts, per target group. With Delays.Routes a changed rule is used later than it is told.
//
// # Faults
//
// Fault adds a rule: a code, a wait, an answer lost after the call was done (After),
// a stale answer (Stale). Lag is for how long a new resource is not found. Capacity is what a zone
// lacks. Deny is IAM. Throttle has token buckets; Documented are AWS's own. Calls and
// Journal are what was asked; SetAlarm and SetParameter are what is found.
package awsfake
