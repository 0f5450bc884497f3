use super::*;

fn node(number: u64) -> NodeId {
    NodeId::for_test(number)
}

fn id(number: u64) -> SubscriptionId {
    SubscriptionId::for_test(number)
}

fn request(follow: bool) -> v1::SubscribeLogsRequest {
    v1::SubscribeLogsRequest {
        selector: Some(v1::LogSelector { node_ids: vec![node(1).to_string()], ..Default::default() }),
        options: Some(v1::LogSubscriptionOptions { follow, ..Default::default() }),
    }
}

fn subscribe(broker: &Broker, number: u64, follow: bool, nodes: &[u64]) -> Reader {
    let request = request(follow);
    let selector = Selector::parse(request.selector.as_ref()).unwrap();
    let selection = Selection { nodes: nodes.iter().map(|&n| node(n)).collect(), problems: Vec::new() };
    broker.subscribe(id(number), selector, request, selection)
}

fn line(text: &str) -> Vec<v1::LogMessage> {
    vec![v1::LogMessage { data: text.as_bytes().to_vec(), ..Default::default() }]
}

#[tokio::test]
async fn lines_of_all_nodes_arrive_before_the_end() {
    let broker = Broker::default();
    let (mut first, mut second) = (broker.listen(node(1)), broker.listen(node(2)));
    let mut reader = subscribe(&broker, 9, false, &[1, 2]);
    assert_eq!(first.next().await.id, id(9).to_string());
    assert_eq!(second.next().await.id, id(9).to_string());
    for number in [1, 2] {
        let mut publisher = broker.publish(&id(9), &node(number)).unwrap();
        assert!(publisher.send(line(&format!("from {number}"))).await);
        publisher.close();
    }
    assert_eq!(reader.next().await.unwrap().unwrap()[0].data, b"from 1");
    assert_eq!(reader.next().await.unwrap().unwrap()[0].data, b"from 2");
    assert_eq!(reader.next().await, Ok(None));
}

#[tokio::test]
async fn a_slow_client_makes_the_agent_wait_and_loses_nothing() {
    let broker = Broker::default();
    let _listener = broker.listen(node(1));
    let mut reader = subscribe(&broker, 9, false, &[1]);
    let sender = tokio::spawn({
        let mut publisher = broker.publish(&id(9), &node(1)).unwrap();
        async move {
            for number in 0..1_000 {
                assert!(publisher.send(line(&number.to_string())).await);
            }
            publisher.close();
        }
    });
    for _ in 0..2_000 {
        tokio::task::yield_now().await;
    }
    assert!(!sender.is_finished(), "the channel is bounded");
    for number in 0..1_000 {
        assert_eq!(reader.next().await.unwrap().unwrap()[0].data, number.to_string().as_bytes());
    }
    assert_eq!(reader.next().await, Ok(None));
}

#[tokio::test]
async fn nodes_that_are_away_or_get_lost_are_named_at_the_end() {
    let broker = Broker::default();
    let (first, second) = (broker.listen(node(1)), broker.listen(node(2)));
    let mut reader = subscribe(&broker, 9, false, &[1, 2, 3]);
    let publisher = broker.publish(&id(9), &node(1)).unwrap();
    assert!(publisher.send(line("half")).await);
    drop(publisher);
    drop((first, second));
    assert_eq!(reader.next().await.unwrap().unwrap()[0].data, b"half");
    let problems = reader.next().await.unwrap_err();
    assert!(problems.contains(&format!("node {} disconnected", node(1))), "{problems}");
    assert!(problems.contains(&format!("node {} is not available", node(2))), "{problems}");
    assert!(problems.contains(&format!("node {} is not available", node(3))), "{problems}");
}

#[tokio::test(start_paused = true)]
async fn nodes_that_are_on_their_way_are_waited_for_but_not_for_ever() {
    let broker = Broker::default();
    let (limit, began) = (Duration::from_secs(3), tokio::time::Instant::now());
    let nodes = BTreeSet::from([node(1), node(2)]);
    let _first = broker.listen(node(1));
    broker.all_listen(&nodes, limit).await;
    assert_eq!(began.elapsed(), limit, "one does not come");
    let waiting = tokio::spawn({
        let broker = broker.clone();
        async move { broker.all_listen(&nodes, limit).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _second = broker.listen(node(2));
    waiting.await.unwrap();
    assert_eq!(began.elapsed(), limit + Duration::from_secs(1), "it has come");
}

#[tokio::test]
async fn an_agent_hears_of_the_end_and_a_client_that_left_stops_it() {
    let broker = Broker::default();
    let mut listener = broker.listen(node(1));
    let reader = subscribe(&broker, 9, true, &[1]);
    assert!(!listener.next().await.close);
    let publisher = broker.publish(&id(9), &node(1)).unwrap();
    drop(reader);
    let end = listener.next().await;
    assert!(end.close && end.selector.is_some() && end.options.is_some());
    assert!(!publisher.send(line("late")).await);
    assert!(broker.publish(&id(9), &node(1)).is_none());
}

#[tokio::test]
async fn who_listens_late_hears_of_what_already_follows() {
    let broker = Broker::default();
    let _reader = subscribe(&broker, 9, true, &[1]);
    assert_eq!(broker.listen(node(1)).next().await.id, id(9).to_string());
}
